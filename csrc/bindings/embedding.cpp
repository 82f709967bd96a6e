// Bindings of the embedding family.
#include "embedding.h"

#include "array.h"

namespace gs {

namespace embedding_bindings {

const Kernel embedding_kernel("embedding"), embedding_backward_kernel("embedding_backward");

// "(2, 5)": the position of element i of an array
std::string place(const Array& a, int64_t i) {
  int64_t at[kMaxDims];
  for (int d = a.ndim - 1; d >= 0; --d) {
    at[d] = i % a.shape[d];
    i /= a.shape[d];
  }
  return shape_text(at, a.ndim);
}

template <class T>
void check_range(const Array& index, int64_t rows) {
  check_values(
      index,
      [](const void* data, const int64_t* args) {
        const T* p = (const T*)data;
        bool bad = false;
        for (int64_t i = 0; i < args[0]; ++i) bad |= (uint64_t)(int64_t)p[i] >= (uint64_t)args[1];
        return !bad;
      },
      [](const Array& a, const int64_t* args) {
        const T* p = a.as<T>();
        for (int64_t i = 0; i < a.size; ++i)
          if ((uint64_t)(int64_t)p[i] >= (uint64_t)args[1])
            throw py::index_error("embedding: index " + std::to_string(p[i]) + " at position " +
                                  place(a, i) + " is out of range: num_embeddings is " +
                                  std::to_string(args[1]) + ", so indices run from 0 to " +
                                  std::to_string(args[1] - 1));
      },
      {index.size, rows});
}

Array read_index(py::handle h, int64_t rows) {
  const char* op = "embedding";
  Array index = array_in(h, op, "input");
  if (index.dtype != kI32 && index.dtype != kI64)
    type_error(op, std::string("input holds indices and must be int32 or int64, got ") +
                       dtype_name(index.dtype));
  index = dense(index);
  if (index.size > INT32_MAX || rows >= INT32_MAX)
    value_error(op, "more than 2^31 indices or rows are not supported");
  if (index.dtype == kI64)
    check_range<int64_t>(index, rows);
  else
    check_range<int32_t>(index, rows);
  return index;
}

py::object forward(py::handle wh, py::handle ih) {
  const char* op = "embedding";
  Array w = array_in(wh, op, "weight");
  check_float(w, op, "weight");
  check_ndim(w, 2, op, "weight", "(num_embeddings, embedding_dim)");
  Array index = read_index(ih, w.shape[0]);
  if (index.ndim >= kMaxDims)
    value_error(op, "input has too many dimensions: " + index.shape_text());
  int64_t shape[kMaxDims];
  for (int i = 0; i < index.ndim; ++i) shape[i] = index.shape[i];
  shape[index.ndim] = w.shape[1];
  w = dense(w);
  Array y = array_new(w.dtype, index.ndim + 1, shape);
  EmbeddingParams p{index.size, w.shape[0], w.shape[1], -1, index.dtype == kI64};
  if (y.size) run(embedding_kernel, w.dtype, p, {in(w), in(index), out(y)});
  return result(y);
}

py::object backward(py::handle gh, py::handle ih, int64_t rows, int64_t padding) {
  const char* op = "embedding_backward";
  Array dy = array_dense(gh, op, "grad");
  check_float(dy, op, "grad");
  Array index = read_index(ih, rows);
  bool fits = dy.ndim == index.ndim + 1;
  for (int i = 0; fits && i < index.ndim; ++i) fits = dy.shape[i] == index.shape[i];
  if (!fits)
    value_error(
        op, "grad has shape " + dy.shape_text() + " for indices of shape " + index.shape_text());
  int64_t cols = dy.dim(-1);
  Array dw = array_new(dy.dtype, {rows, cols});
  EmbeddingParams p{index.size, rows, cols, padding, index.dtype == kI64};
  if (dw.size) run(embedding_backward_kernel, dy.dtype, p, {in(dy), in(index), out(dw)});
  return result(dw);
}

}  // namespace embedding_bindings

void bind_embedding(py::module_& module) {
  using namespace embedding_bindings;
  Functions m(module);
  m.def("embedding", &forward, py::arg("weight"), py::arg("index"), "weight[index]");
  m.def("embedding_backward", &backward, py::arg("grad"), py::arg("index"), py::arg("rows"),
        py::arg("padding"), "The gradient of the table: (rows, cols).");
}

}  // namespace gs
