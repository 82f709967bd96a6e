// Bindings of the captured step: a recording (csrc/graph/record.cpp) with the arrays that it saw,
// and the program that is made of it (program.h).
#include <memory>
#include <unordered_set>

#include "program.h"

namespace gs {

namespace {

struct Recording {
  Recorder rec;
  std::vector<py::object> held;  // every array that is not from the recording itself
  std::vector<Check> checks;
  std::unordered_set<PyObject*> seen;
  int inputs = 0;
  bool running = false;

  ~Recording() {
    if (running) stop();
  }
  void stop() {
    running = false;
    recording_stop();
    rec.end();
  }
  void see(PyObject* a);
  int object_of(py::handle a) const { return rec.find(proxy_of(a.ptr())->data); }
};

Recording* current = nullptr;

void Recording::see(PyObject* a) {
  char *low, *high;
  extent(a, &low, &high);
  if (low == high) {  // kernels get the address of what they do not read
    if (rec.find(low) < 0) {
      rec.add_external(low, 0, Home::kFixed, -1);
      held.push_back(py::reinterpret_borrow<py::object>(a));
    }
    return;
  }
  int k = rec.find(low);
  if (k >= 0) {
    const MemoryObject& o = rec.objects[(size_t)k];
    if (high <= o.base + o.bytes) {
      if (o.external && seen.insert(a).second)
        held.push_back(py::reinterpret_borrow<py::object>(a));
      return;
    }
  }
  // A view stands for the array that owns the memory, unless a part of that is known already.
  PyObject* root = a;
  while (proxy_of(root)->base && is_array(proxy_of(root)->base)) root = proxy_of(root)->base;
  char *root_low, *root_high;
  extent(root, &root_low, &root_high);
  if (root_low <= low && high <= root_high) {
    auto it = rec.by_base.lower_bound(root_low);
    bool free = it == rec.by_base.end() || it->first >= root_high;
    if (free && rec.find(root_low) < 0) {
      low = root_low;
      high = root_high;
    }
  }
  auto it = rec.by_base.lower_bound(low);
  if (rec.find(low) >= 0 || (it != rec.by_base.end() && it->first < high)) {
    if (rec.error.empty())
      rec.error =
          "two arrays share a part of their memory, and one of them is an input or another view "
          "of the same array. Pass a clone()";
    return;
  }
  rec.add_external(low, (size_t)(high - low), Home::kFixed, -1);
  held.push_back(py::reinterpret_borrow<py::object>(a));
  seen.insert(a);
}

std::unique_ptr<PyProgram> finish(Recording& r, py::list leaves, py::list outs, int threads,
                                  py::dict options, uint64_t first_counter, uint64_t last_counter) {
  if (r.running) throw std::runtime_error("finish: the recording still runs");
  auto q = std::make_unique<PyProgram>();
  q->p.options.threads = threads;
  auto flag = [&](const char* name, bool fallback) {
    return options.contains(name) ? options[name].cast<bool>() : fallback;
  };
  q->p.options.side_by_side = flag("side_by_side", true);
  q->p.options.barriers = flag("barriers", true);
  q->p.options.reuse = flag("memory", true);
  q->p.options.relu_pool = flag("relu_pool", true);
  q->p.options.conv_pool = flag("conv_pool", true);
  q->p.options.norm_relu = flag("norm_relu", true);
  q->p.options.norm_stats = flag("norm_stats", true);
  q->p.options.bias_relu = flag("bias_relu", true);
  q->p.options.bias_activation = flag("bias_activation", true);
  q->p.options.activation_gradient = flag("activation_gradient", true);
  q->p.options.gradient_sum = flag("gradient_sum", true);
  q->p.options.conv_gradient = flag("conv_gradient", true);
  q->p.options.norm_gradient = flag("norm_gradient", true);
  q->p.options.in_place = flag("in_place", true);
  q->p.options.residual = flag("residual", true);
  q->p.options.norm_sum = flag("norm_sum", true);
  q->p.options.pieces = flag("pieces", true);
  q->p.options.last_step = flag("last_step", true);
  q->p.options.optimizer = flag("optimizer", true);
  const bool chosen = options.contains("gradient_update") && !options["gradient_update"].is_none();
  q->p.options.gradient_update = !chosen || flag("gradient_update", true);
  q->p.options.gradient_update_anyway = chosen;
  q->p.options.transposed = flag("transposed", true);
  q->p.options.prepared_weights = flag("prepared_weights", true);
  q->p.options.prepared_updates = flag("prepared_updates", true);
  for (auto item : leaves) {
    Input in;
    py::tuple t = py::reinterpret_borrow<py::tuple>(item);  // (constant,) or (type, array, same_as)
    if (t.size() == 1) {
      in.value = t[0];
    } else {
      in.tensor = true;
      in.type = t[0];
      py::object a = t[1];
      const auto* x = proxy_of(a.ptr());
      in.type_num = py::detail::array_descriptor_proxy(x->descr)->type_num;
      in.shape.assign(x->dimensions, x->dimensions + x->nd);
      in.same_as = t[2].cast<int>();
      int k = bytes_of(a.ptr()) ? r.rec.find(x->data) : -1;
      if (k >= 0 && in.same_as < 0 && r.rec.objects[(size_t)k].home == Home::kInput) {
        in.object = k;
        in.written = r.rec.objects[(size_t)k].written;
        if (in.written) q->writes_inputs = true;
      }
    }
    q->inputs.push_back(std::move(in));
  }
  for (auto item : outs) {
    py::tuple t = py::reinterpret_borrow<py::tuple>(item);  // (array, holder, parameter)
    Output o;
    o.array = t[0];
    if (!t[1].is_none()) {
      o.holder = t[1];
      o.parameter = t[2];
    }
    o.object = r.rec.find(proxy_of(o.array.ptr())->data);
    if (o.object < 0) throw std::runtime_error("finish: an output is not in the recording");
    Array a = array_in(o.array, "capture", "output");
    o.dtype = a.dtype;
    o.shape.assign(a.shape, a.shape + a.ndim);
    MemoryObject& m = r.rec.objects[(size_t)o.object];
    m.home = Home::kOutput;
    m.index = (int)q->outputs.size();
    q->outputs.push_back(std::move(o));
  }
  // Gradients from before the call may be freed: each replay looks for those that there are.
  for (py::object& a : r.held) {
    int k = r.object_of(a);
    if (k < 0 || r.rec.objects[(size_t)k].gradient < 0) q->held.push_back(std::move(a));
  }
  r.held.clear();
  q->checks = std::move(r.checks);
  q->p.ops = std::move(r.rec.ops);
  q->p.objects = std::move(r.rec.objects);
  {
    WithoutGil release;
    q->p.fuse();
    q->p.build();
    q->p.slot_random(first_counter, last_counter);
  }
  q->add_fixed();
  return q;
}
}  // namespace

void recording_sees(PyObject* array) {
  if (current) current->see(array);
}

void check_values(const Array& a, CheckFn ok, RaiseFn raise, std::initializer_list<int64_t> args) {
  if (!ok(a.data, args.begin())) raise(a, args.begin());
  if (!recorder || !current || a.size == 0) return;
  Array shape = a;
  shape.object = py::object();
  current->checks.push_back(Check{shape, raise});
  recorder->check(ok, (int)current->checks.size() - 1, in(a), args.begin(), (int)args.size());
}

void bind_capture(py::module_& m) {
  auto intern = [](const char* s) { return PyUnicode_InternFromString(s); };
  option_names = Names{intern("lr"),          intern("betas"),
                       intern("eps"),         intern("weight_decay"),
                       intern("l1"),          intern("maximize"),
                       intern("amsgrad"),     intern("step"),
                       intern("momentum"),    intern("dampening"),
                       intern("nesterov"),    intern("decoupled_weight_decay"),
                       intern("_clip_value"), intern("_max_grad_norm")};
  m.attr("CapturedBase") = captured_base();
  m.def(
      "has_dict",
      [](py::handle o) {
        PyObject* d = dict_of(o.ptr());
        return d && PyDict_Check(d);
      },
      py::arg("object"), "Whether an object keeps its attributes in a dict of its own.");
  m.def(
      "_recording_forked", [] { recorder_any.store(recorder); },
      "In a forked child: a recording of a thread that did not come along is over.");
  py::class_<Recording>(m, "Recording", "One run of a function, launch by launch.")
      .def(py::init<>())
      .def(
          "start",
          [](Recording& r, py::list inputs, py::list gradients) {
            if (recorder_any.load()) return false;
            for (size_t i = 0; i < gradients.size(); ++i)
              if (is_array(gradients[i].ptr()))
                r.rec.gradients.emplace(proxy_of(py::object(gradients[i]).ptr())->data, (int)i);
            for (auto a : inputs) {
              char *low, *high;
              extent(a.ptr(), &low, &high);
              if (low == high) continue;
              if (r.rec.find(low) >= 0) continue;
              r.rec.add_external(low, (size_t)(high - low), Home::kInput, r.inputs++);
              r.held.push_back(py::reinterpret_borrow<py::object>(a));
            }
            if (!recording_start(&r.rec)) return false;
            r.running = true;
            current = &r;
            return true;
          },
          py::arg("inputs"), py::arg("gradients"),
          "gradients: the array that each parameter has for it, or None. False when another thread "
          "records.")
      .def("stop",
           [](Recording& r) {
             if (!r.running) return;
             r.rec.verify_contents();
             current = nullptr;
             r.stop();
           })
      .def("drop", [](Recording& r) { r.held.clear(); })
      .def_property_readonly("error", [](Recording& r) { return r.rec.error; })
      .def_property_readonly("launches", [](Recording& r) { return r.rec.ops.size(); })
      .def(
          "whole",
          [](Recording& r, py::handle a) {
            int k = r.object_of(a);
            if (k < 0 || !c_contiguous(a.ptr())) return false;
            const MemoryObject& o = r.rec.objects[(size_t)k];
            return !o.external && o.touched && o.base == proxy_of(a.ptr())->data &&
                   (int64_t)o.bytes == bytes_of(a.ptr());
          },
          py::arg("array"), "Whether an array is a whole piece of memory that a kernel wrote.")
      .def("input_of",
           [](Recording& r, py::handle a) {
             int k = r.object_of(a);
             return k >= 0 && r.rec.objects[(size_t)k].home == Home::kInput;
           })
      .def(
          "touched",
          [](Recording& r, py::handle a) {
            int k = r.object_of(a);
            return k >= 0 && r.rec.objects[(size_t)k].touched;
          },
          py::arg("array"))
      .def(
          "written",
          [](Recording& r, py::handle a) {
            int k = r.object_of(a);
            return k >= 0 && r.rec.objects[(size_t)k].written;
          },
          py::arg("array"))
      .def(
          "alive",
          [](Recording& r, py::list known) {
            std::unordered_set<int> ok;
            for (auto a : known) ok.insert(r.object_of(a));
            int64_t bytes = 0, count = 0;
            for (size_t i = 0; i < r.rec.objects.size(); ++i) {
              const MemoryObject& o = r.rec.objects[i];
              if (!o.external && !o.freed && o.written && !ok.count((int)i)) {
                ++count;
                bytes += (int64_t)o.bytes;
              }
            }
            return py::make_tuple(count, bytes);
          },
          py::arg("known"),
          "Arrays made in the recording that somebody still holds: (count, bytes).")
      .def(
          "difference",
          [](Recording& r, Recording& other, uint64_t first, uint64_t other_first) {
            return r.rec.difference(other.rec, first, other_first);
          },
          py::arg("other"), py::arg("first"), py::arg("other_first"),
          "What differs between two recordings of one function; empty when nothing does.")
      .def("finish", &finish, py::arg("leaves"), py::arg("outputs"), py::arg("threads"),
           py::arg("options"), py::arg("first_counter"), py::arg("last_counter"));

  py::class_<PyProgram>(m, "Program", "A recorded step, ready to be replayed.",
                        py::custom_type_setup([](PyHeapTypeObject* type) {
                          type->ht_type.tp_flags |= Py_TPFLAGS_HAVE_GC;
                          type->ht_type.tp_traverse = program_traverse;
                          type->ht_type.tp_clear = program_clear;
                        }))
      .def("check", &PyProgram::check, py::arg("leaves"))
      .def("replay", &PyProgram::replay)
      .def_property_readonly("reason", [](PyProgram& q) { return q.reason; })
      .def_readwrite("plain_arguments", &PyProgram::plain_arguments,
                     "Whether arguments may have neither attributes nor a gradient.")
      .def("guard_item",
           [](PyProgram& q, py::dict owner, py::object key, py::object value, std::string name) {
             q.guards.push_back(Guard{Guard::kItem, owner, key, value, 0, -1, std::move(name)});
           })
      .def("guard_size",
           [](PyProgram& q, py::dict owner, std::string name) {
             q.guards.push_back(Guard{Guard::kSize, owner, py::none(), py::none(),
                                      (int64_t)owner.size(), -1, std::move(name)});
           })
      .def("guard_keys",
           [](PyProgram& q, py::dict owner, std::string name) {
             py::tuple keys = py::reinterpret_steal<py::tuple>(PySequence_Tuple(owner.ptr()));
             if (!keys) throw py::error_already_set();
             q.guards.push_back(
                 Guard{Guard::kKeys, owner, keys, py::none(), 0, -1, std::move(name)});
           })
      .def(
          "guard_place",
          [](PyProgram& q, py::object owner, std::string name) {
            PyObject* own = dict_of(owner.ptr());
            if (!own) throw py::type_error("guard_place: no __dict__");
            q.guards.push_back(Guard{Guard::kPlace, owner, py::type::of(owner),
                                     py::reinterpret_borrow<py::object>(own), 0, -1,
                                     std::move(name)});
          },
          "An object keeps its class and its __dict__.")
      .def("guard_cell",
           [](PyProgram& q, py::object cell, py::object value, std::string name) {
             if (!PyCell_Check(cell.ptr())) throw py::type_error("guard_cell: not a cell");
             q.guards.push_back(
                 Guard{Guard::kCell, cell, py::none(), value, 0, -1, std::move(name)});
           })
      .def("guard_list",
           [](PyProgram& q, py::list owner, std::string name) {
             q.guards.push_back(
                 Guard{Guard::kList, owner, py::tuple(owner), py::none(), 0, -1, std::move(name)});
           })
      .def("guard_attribute",
           [](PyProgram& q, py::object owner, py::str key, py::object value, bool there,
              std::string name) {
             q.guards.push_back(Guard{Guard::kAttribute, owner, key, there ? value : py::object(),
                                      0, -1, std::move(name)});
           })
      .def(
          "guard_absent",
          [](PyProgram& q, py::dict owner, py::object key, std::string name) {
            q.guards.push_back(
                Guard{Guard::kItem, owner, key, py::object(), 0, -1, std::move(name)});
          },
          "A dict does not get this key.")
      .def(
          "guard_type",
          [](PyProgram& q, py::type owner, py::str key, py::object value, bool there,
             std::string name) {
            q.guards.push_back(Guard{Guard::kType, owner, key, there ? value : py::object(), 0, -1,
                                     std::move(name)});
          },
          "What a class, with those that it inherits from, has under a name.")
      .def(
          "guard_function",
          [](PyProgram& q, py::object owner, py::tuple parts, std::string name) {
            if (!PyFunction_Check(owner.ptr()) || parts.size() != 3)
              throw py::type_error("guard_function: not a function");
            q.guards.push_back(
                Guard{Guard::kFunction, owner, parts, py::none(), 0, -1, std::move(name)});
          },
          "A function keeps its code and its defaults.")
      .def(
          "guard_order",
          [](PyProgram& q, py::object owner, py::tuple values, std::string name) {
            q.guards.push_back(
                Guard{Guard::kOrder, owner, values, py::none(), 0, -1, std::move(name)});
          },
          "Walking over a set or a deque gives these values.")
      .def(
          "guard_content",
          [](PyProgram& q, py::object owner, py::tuple content, std::string name) {
            if (content.size() != 3 || !PyBytes_Check(PyTuple_GET_ITEM(content.ptr(), 2)))
              throw py::type_error("guard_content: not (format, shape, bytes)");
            q.guards.push_back(
                Guard{Guard::kContent, owner, content, py::none(), 0, -1, std::move(name)});
          },
          "An array or a buffer keeps its values.")
      .def("guard_context",
           [](PyProgram& q, py::object owner, py::object value, bool there, std::string name) {
             if (!PyContextVar_CheckExact(owner.ptr()))
               throw py::type_error("guard_context: not a ContextVar");
             q.guards.push_back(Guard{Guard::kContext, owner, py::none(),
                                      there ? value : py::object(), 0, -1, std::move(name)});
           })
      .def("guard_tensor",
           [](PyProgram& q, py::object tensor, py::object array, std::string name) {
             if (!is_tensor(tensor.ptr())) throw py::type_error("guard_tensor: not a Tensor");
             Guard g{Guard::kTensor, tensor, py::none(), array, 0, -1, std::move(name)};
             g.number = ((Tensor*)tensor.ptr())->requires_grad;
             g.hooks = hooks_of((Tensor*)tensor.ptr());
             if (is_array(array.ptr()) && c_contiguous(array.ptr()) && bytes_of(array.ptr()))
               for (size_t i = 0; i < q.p.objects.size(); ++i) {
                 const MemoryObject& o = q.p.objects[i];
                 if (o.home == Home::kFixed && o.base == proxy_of(array.ptr())->data &&
                     (int64_t)o.bytes == bytes_of(array.ptr()))
                   g.object = (int)i;
               }
             // Of two tensors that share their memory none can move alone.
             if (g.object >= 0)
               for (Guard& other : q.guards)
                 if (other.kind == Guard::kTensor && other.shared == g.object) {
                   other.object = -1;
                   g.shared = g.object;
                 }
             if (g.shared >= 0)
               g.object = -1;
             else
               g.shared = g.object;
             q.guards.push_back(std::move(g));
           })
      .def("guard_grad",
           [](PyProgram& q, py::object tensor, py::object grad, std::string name) {
             if (!is_tensor(tensor.ptr())) throw py::type_error("guard_grad: not a Tensor");
             q.guards.push_back(
                 Guard{Guard::kGrad, tensor, py::none(), grad, 0, -1, std::move(name)});
           })
      .def(
          "guard_has_grad",
          [](PyProgram& q, py::object tensor, std::string name) {
            if (!is_tensor(tensor.ptr())) throw py::type_error("guard_has_grad: not a Tensor");
            q.guards.push_back(
                Guard{Guard::kHasGrad, tensor, py::none(), py::none(), 0, -1, std::move(name)});
          },
          "A tensor has a gradient, whichever.")
      .def(
          "guard_gradient",
          [](PyProgram& q, py::object tensor, py::object array, std::string name) {
            if (!is_tensor(tensor.ptr())) throw py::type_error("guard_gradient: not a Tensor");
            for (size_t i = 0; i < q.p.objects.size(); ++i) {
              const MemoryObject& o = q.p.objects[i];
              if (o.gradient < 0 || o.base != proxy_of(array.ptr())->data ||
                  (int64_t)o.bytes != bytes_of(array.ptr()) || !c_contiguous(array.ptr()))
                continue;
              py::object kind = py::make_tuple(array.attr("dtype"), array.attr("shape"));
              q.guards.push_back(
                  Guard{Guard::kGradient, tensor, py::none(), kind, 0, (int)i, std::move(name)});
              return true;
            }
            return false;
          },
          "A gradient that the program reads may be any array of its kind; False when it may not.")
      .def(
          "set_changed",
          [](PyProgram& q, py::list versions, std::vector<int> inputs) {
            for (auto v : versions) {
              if (Py_TYPE(v.ptr()) != &version_type) throw py::type_error("not a version");
              q.changed.push_back(py::reinterpret_borrow<py::object>(v));
            }
            q.changed_inputs = std::move(inputs);
          },
          "The versions of tensors, and the arguments, that a replay changes in place.")
      .def("count_changes", [](PyProgram& q, py::tuple leaves) { q.count_changes(leaves.ptr()); })
      .def("caller", &program_caller, "`call`, a builtin: see its documentation.")
      .def("set_direct",
           [](PyProgram& q, bool grad_mode, bool autocast_mode, py::object module,
              py::list steppers, py::list cleared, py::list leaf_outputs, bool single) {
             for (auto item : steppers) {
               // (rule, own dict, decoupled, norm, clip slot, [(group, slots, owns, flag)],
               // versions)
               py::tuple t = py::reinterpret_borrow<py::tuple>(item);
               Stepper s;
               s.rule = t[0].cast<std::string>() == "adam" ? Stepper::kAdam : Stepper::kSgd;
               s.own = t[1];
               s.decoupled_always = t[2].cast<bool>();
               s.norm = t[3].cast<bool>();
               s.clip_slot = t[4].cast<int>();
               for (auto each : t[5]) {
                 py::tuple u = py::reinterpret_borrow<py::tuple>(each);
                 Stepper::Set set;
                 set.group = u[0];
                 set.slots = u[1].cast<std::vector<int>>();
                 for (auto o : u[2]) set.owns.push_back(py::reinterpret_borrow<py::dict>(o));
                 set.flag = u[3].cast<bool>();
                 s.sets.push_back(std::move(set));
               }
               for (auto v : t[6]) {
                 if (Py_TYPE(v.ptr()) != &version_type) throw py::type_error("not a version");
                 s.versions.push_back((Version*)v.ptr());
                 s.held.push_back(py::reinterpret_borrow<py::object>(v));
               }
               q.steppers.push_back(std::move(s));
             }
             for (auto c : cleared) {
               q.cleared_held.push_back(py::reinterpret_borrow<py::object>(c));
               q.cleared.push_back(c.ptr());
             }
             for (auto i : leaf_outputs) q.leaf_outputs.push_back(i.cast<int>());
             q.single = single;
             q.sorted = 0;
             q.grad_mode = grad_mode;
             q.autocast_mode = autocast_mode;
             q.module = module;
             q.direct = true;
           })
      .def("set_random",
           [](PyProgram& q, uint64_t seed, uint64_t counter) {
             if (q.p.random_slot >= 0) slot_table()[q.p.random_slot].u = counter;
             if (seed != q.p.seed) {
               q.p.seed = seed;
               for (uint64_t* s : q.p.seeds) *s = seed;
             }
           })
      .def("set_holder", [](PyProgram& q, size_t i, py::object h) { q.outputs.at(i).holder = h; })
      .def("holder",
           [](PyProgram& q, size_t i) {
             py::object h = q.outputs.at(i).holder;
             return h.ptr() ? h : py::object(py::none());
           })
      .def("check_inputs",
           [](PyProgram& q) {
             int failed = q.p.check_inputs();
             if (failed >= 0) q.raise_failed(failed);
           })
      .def("has_checks", [](PyProgram& q) { return !q.p.prologue.empty(); })
      .def("acquire",
           [](PyProgram& q) {
             bool expected = false;
             return q.busy.compare_exchange_strong(expected, true);
           })
      .def("release", [](PyProgram& q) { q.busy.store(false); })
      .def("profile",
           [](PyProgram& q, bool on) {
             q.p.profile = on;
             q.p.times.assign(q.p.steps.size(), 0.0);
           })
      .def("times", [](PyProgram& q) { return q.p.times; })
      .def(
          "kernel_seconds",
          [](PyProgram& q, int rounds, int repeat) {
            if (rounds < 1 || repeat < 1)
              throw py::value_error("kernel_seconds: rounds and repeat must be positive");
            WithoutGil release;
            return q.p.kernel_seconds(rounds, repeat);
          },
          py::arg("rounds"), py::arg("repeat"),
          "Seconds of each kernel alone on this thread; overwrites what they write.")
      .def("stats",
           [](PyProgram& q) {
             py::dict d;
             d["ops"] = q.p.ops.size();
             d["steps"] = q.p.steps.size();
             d["barriers"] = q.p.barriers;
             d["arena_bytes"] = q.p.arena_bytes;
             d["unshared_bytes"] = q.p.unshared_bytes;
             d["in_place"] = q.p.in_place;
             d["scratch_bytes"] = q.p.scratch_bytes;
             d["constant_bytes"] = q.p.constant_bytes;
             d["guards"] = q.guards.size();
             d["replays"] = q.p.replays;
             d["allocations"] = q.allocations;
             d["pool_allocations"] = q.pool_allocations;
             d["writes_inputs"] = q.writes_inputs;
             d["threads"] = q.p.options.threads;
             return d;
           })
      .def(
          "work",
          [](PyProgram& q) {
            py::list l;
            for (const Work& w : q.p.work()) l.append(py::make_tuple(w.flops, w.bytes));
            return l;
          },
          "Operations and bytes that each kernel needs at least.")
      .def("listing", [](PyProgram& q) {
        py::list l;
        for (const Step& s : q.p.steps) {
          const RecordedOp& op = q.p.ops[(size_t)s.op];
          l.append(py::make_tuple(op.name(), s.nt, s.owner, s.barrier, op.plan.work,
                                  op.note ? op.note : ""));
        }
        return l;
      });
}

}  // namespace gs
