// Operands of elementwise ops: arrays or Python numbers, brought to one dtype and one shape.
#pragma once
#include "array.h"
#include "elementwise.h"

namespace gs {

struct Operand {
  Array array;
  bool is_number = false;
  bool is_int = false;
  bool is_bool = false;
  bool absent = false;  // None, where it is allowed
  double d = 0;
  int64_t i = 0;
};

// An array or a Python number; TypeError for anything else.
Operand operand(py::handle h, const char* op, const char* name, bool optional = false);
Operand operand(const Array& a);

// The dtype of the arrays among args (and of target); a number adopts it. TypeError when they
// differ.
DType common_dtype(const Operand* args, int n, const char* op, const Array* target);

// The number in dtype t, both as double and as integer. TypeError for a fraction into integers,
// ValueError when it does not fit.
void set_number(const Operand& number, DType t, const char* op, double* d, int64_t* i);

// Fills ndim, shape and strides of p for the broadcast of args, output last, and makes the output:
// a fresh array of dtype t, or `target`, which the args must broadcast to. An input that overlaps
// the target otherwise than being the very same elements is replaced by a copy.
void broadcast(Operand* args, int n, const char* op, DType t, Array* target, ElementwiseParams* p,
               Array* out);

// a, or a copy of it where writing to target would change elements of a that are still to be read.
Array apart(const Array& a, const Array& target);

// A read-only view of a, broadcast to shape.
py::object expand(const Array& a, py::tuple shape);
// A view on the memory of a.
py::object view_of(const Array& a, int ndim, const int64_t* shape, const int64_t* strides,
                   bool writeable);

}  // namespace gs
