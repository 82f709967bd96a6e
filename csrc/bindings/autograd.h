// The graph of gradients as C structs: what core/tensor.py and core/autograd.py subclass.
#pragma once
#include <vector>

#include "array.h"

namespace gs {

struct Node;
struct Tensor;

// The number of changes made to a piece of memory, shared by all views of it. Python sees box[0].
struct Version {
  PyObject_HEAD int64_t value;
  Tensor* plain;  // the views that have no gradient, a list through Tensor::next; not owned
};

// Where a gradient goes: output `index` of `node`. Owns the node; empty where none is wanted.
struct Edge {
  Node* node;
  int index;
};

// A saved tensor's memory and the version at which it was saved.
struct Watch {
  Version* version;
  int64_t value;
};

struct Tensor {
  PyObject_HEAD PyObject* data;  // the array
  PyObject* k;                   // kernel module of its device
  PyObject* grad;                // Tensor or None
  Node* node;                    // what made it; nullptr for a leaf
  Node* accumulator;             // the node that adds to a leaf's grad, once there is one
  Version* version;
  PyObject *dict, *weakrefs;
  int64_t at;  // version at which `node` is valid
  int index;   // which output of the node
  bool requires_grad, view;
  bool apart;     // detached: shares memory, but no gradient ever comes through it
  Tensor* next;   // in the list Version::plain
  Tensor** link;  // what points at this one there; nullptr: not in the list
};

struct Node {
  PyObject_HEAD PyObject* k;
  PyObject* needs;   // tuple of bool, one an input
  PyObject* saved;   // tuple of arrays; nullptr: none; None: freed by backward
  PyObject* hooks;   // {output: {id: function}} or None
  PyObject* retain;  // {output: weak reference to a Tensor} or None
  PyObject *dict, *weakrefs;
  Tensor* leaf;   // accumulators: whose gradient, not owned; nullptr once it is gone
  int64_t seq;    // position in the program
  bool autocast;  // the precision of the forward pass, which the backward pass takes over
  int outputs, edge_count, watch_count;
  Edge* edges;  // points at few_edges where they suffice
  Watch* watch;
  Edge few_edges[3];
  Watch few_watch[3];
};

extern PyTypeObject version_type, tensor_type, node_type, accumulator_type, module_type;

inline bool is_tensor(PyObject* o) { return PyObject_TypeCheck(o, &tensor_type); }
inline bool is_node(PyObject* o) { return PyObject_TypeCheck(o, &node_type); }

// Whether ops of this thread record the graph.
bool& grad_enabled();

// All return new references or nullptr with a Python error set.
Tensor* tensor_wrap(PyObject* data, PyObject* k);
bool tensor_edge(Tensor* t, Edge* out);
PyObject* node_saved(Node* n);  // checks the versions
void node_release_saved(Node* n);
PyObject* node_name(Node* n);
// A view without a gradient joins its version's list, so that plain_views_changed finds it.
void plain_view(Tensor* t);
// The memory of `t` was just given a value with a gradient, in place: views taken before, when it
// had none, cannot say so. Using them where gradients are recorded is an error from here on.
void plain_views_changed(Tensor* t);

// What `apply` in Python does: the Tensor around the array `out` that an op computed from `inputs`
// (Tensors or None), or a tuple of them for a tuple. Where a gradient is wanted the op is recorded
// as a node of class `cls` that keeps `saved` (Tensors or arrays) and has the attributes.
typedef std::pair<PyObject*, PyObject*> Attribute;  // interned name, value
py::object tensor_apply(py::handle cls, py::handle out, std::initializer_list<py::handle> inputs,
                        std::initializer_list<py::handle> saved, bool save_output = false,
                        std::initializer_list<Attribute> attributes = {});
// Whether a gradient is wanted of an op of these inputs.
bool tensors_want(std::initializer_list<py::handle> inputs);
// Counts a change of the memory of a Tensor; None is passed over.
void tensor_changed(py::handle h);
// The array of an argument that has to be a Tensor, or None where that is allowed; TypeError else.
PyObject* tensor_data(py::handle h, const char* op, const char* name, bool optional = false);

// The arrays of an optimizer's rows, tuples (parameter, its array, dict of its state, list of the
// state's arrays) of its last step: parameter, gradient and states of each, borrowed. false when a
// parameter, its array, or the shape or dtype of its gradient is another now.
bool rows_arrays(PyObject* rows, PyObject* params, std::vector<PyObject*>* arrays);
// The state of each row takes the numbers; its parameter has changed.
void rows_changed(PyObject* rows, PyObject* numbers);

// Shape, dtype kind and layout of an array; the quick way where it is NumPy's own.
inline bool is_ndarray(PyObject* o) {
  return (PyObject*)Py_TYPE(o) == (PyObject*)py::detail::npy_api::get().PyArray_Type_;
}

// engine.cpp
void bind_engine(py::module_& m);

}  // namespace gs
