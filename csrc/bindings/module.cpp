// The extension module: one function bind_<family> for each family, and the runtime's switches.
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <time.h>

#include "array.h"
#include "probe.h"

namespace gs {

#define GS_BINDING(f) void bind_##f(py::module_&);
#include "bindings.inc"
#undef GS_BINDING

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const Kernel fma_peak("fma_peak"), stream_copy("stream_copy");

// Seconds for one run of the register-only FMA loop on `threads` members, and the operations it
// did.
py::tuple probe_fma(const std::string& dtype, int threads, int64_t iterations) {
  DType t = dtype == "float64" ? kF64 : kF32;
  const KernelEntry* entry = fma_peak.get(t);
  double sink[8];
  FmaPeakParams p{iterations, threads};
  Buffer b{sink, 0, kWrite};
  int64_t bytes = strcmp(isa_active(), "base") == 0 || strcmp(isa_active(), "neon") == 0 ? 16
                  : strcmp(isa_active(), "avx2") == 0                                    ? 32
                                                                                         : 64;
  int64_t lanes = bytes / dtype_size(t), chains = bytes == 64 ? 24 : 12;
  Launch call{entry, &p, sizeof(p), &b, 1, Plan{1, 0, 0}};
  entry->plan(&p, &call.plan);
  double start, stop;
  {
    WithoutGil release;
    start = now();
    launch(call);
    stop = now();
  }
  int members = threads < get_num_threads() ? threads : get_num_threads();
  return py::make_tuple(stop - start, (double)iterations * (double)(chains * lanes * 2 * members));
}

// Seconds to copy in to out (both contiguous, a multiple of 64 bytes); of two sizes one is a
// multiple of the other, see StreamCopyParams.
double probe_copy(py::handle in_h, py::handle out_h, int threads, bool streaming) {
  Array a = array_in(in_h, "probe_copy", "in"), b = array_out(out_h, "probe_copy", "out");
  const int64_t n = a.nbytes(), m = b.nbytes();
  if (!a.contiguous || !b.contiguous || n < 64 || m < 64 || (n > m ? n % m : m % n) ||
      ((uintptr_t)b.data & 63))
    value_error("probe_copy",
                "in and out must be contiguous, 64-byte aligned and of one size, or one of a "
                "multiple of the other's");
  StreamCopyParams p{n, m, threads, streaming};
  Buffer buffers[] = {in(a), out(b)};
  const KernelEntry* entry = stream_copy.get(kF32);
  Launch call{entry, &p, sizeof(p), buffers, 2, Plan{1, 0, 0}};
  entry->plan(&p, &call.plan);
  WithoutGil release;
  double start = now();
  launch(call);
  return now() - start;
}

// A setting from the environment that would be read as something else is an error of the import;
// unset and empty are no setting.
void check_number(const char* name, long least, long most, const char* expected) {
  const char* want = getenv(name);
  if (!want || !*want) return;
  char* end;
  errno = 0;
  const long n = strtol(want, &end, 10);
  if (*end || errno || n < least || n > most)
    throw py::import_error(std::string(name) + "=" + want + ": expected " + expected);
}

}  // namespace
}  // namespace gs

PYBIND11_MODULE(_cpu, m) {
  using namespace gs;
  m.doc() = "CPU kernels of gradsmith";
  if (const char* want = getenv("GRADSMITH_ISA"))
    if (*want)
      if (const char* error = isa_choose(want)) throw py::import_error(error);
  check_number("GRADSMITH_NUM_THREADS", 1, 256, "a whole number, 1 .. 256");
  check_number("GRADSMITH_STREAM_BYTES", 0, LONG_MAX, "a whole number, 0 or more");
  check_number("GRADSMITH_POOL", 0, 1, "0 or 1");
  check_number("GRADSMITH_VERBOSE", 0, 1, "0 or 1");
  m.def(
      "isa", [] { return std::string(isa_active()); }, "The instruction set in use.");
  m.def(
      "supported_isas",
      [] {
        const char* names[8];
        int n = isa_supported(names);
        py::list r;
        for (int i = 0; i < n; ++i) r.append(names[i]);
        return r;
      },
      "Instruction sets that this build and this machine have, lowest first.");
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("team_moves", &team_moves,
        "How often a worker left a core that it shared with another member.");
  m.def("cpu_budget", [] {
    CpuBudget b = cpu_budget();
    py::dict d;
    d["cores"] = b.cores;
    d["affinity"] = b.affinity;
    d["quota"] = b.quota;
    d["chosen"] = b.chosen;
    d["reason"] = b.reason;
    return d;
  });
  m.def("machine", [] {
    const Machine& x = machine();
    py::dict d;
    d["name"] = x.name;
    d["l1d"] = x.l1d;
    d["l2"] = x.l2;
    d["l3"] = x.l3;
    d["near"] = x.near;
    return d;
  });
  m.def("memory_stats", [] {
    PoolStats s = pool_stats();
    py::dict d;
    d["in_use"] = s.in_use;
    d["cached"] = s.cached;
    d["peak"] = s.peak;
    d["system_calls"] = s.system_calls;
    d["hits"] = s.hits;
    d["misses"] = s.misses;
    return d;
  });
  m.def("empty_cache", &pool_trim);
  m.def("slot_new", [] {
    int s = slot_new();
    if (s < 0) throw std::runtime_error("slot_new: the table of slots is full");
    return s;
  });
  m.def("slot_free", &slot_free, py::arg("slot"));
  m.def(
      "slot_set", [](int slot, double v) { slot_table()[slot].f = v; }, py::arg("slot"),
      py::arg("value"));
  m.def(
      "slot_get", [](int slot) { return slot_table()[slot].f; }, py::arg("slot"));
  m.def("probe_fma", &probe_fma, py::arg("dtype"), py::arg("threads"), py::arg("iterations"));
  m.def("probe_copy", &probe_copy, py::arg("src"), py::arg("dst"), py::arg("threads"),
        py::arg("streaming"));
#define GS_BINDING(f) bind_##f(m);
#include "bindings.inc"
#undef GS_BINDING
}
