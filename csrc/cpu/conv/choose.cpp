// The ordered list of convolution implementations: the first that accepts a problem runs it. All of
// them compute the same thing, so a new one is a line here above those it beats.
// GRADSMITH_VERBOSE=1 says which one was taken and why.
//
// bfloat16 accepts what runs under autocast, has at least 8 channels on either side of a group and
// would be slower in float32: everything where there are tiles, nothing where products of rounded
// operands are float32's own. Before it, where those products take half of the time and the
// precision is not strict, bfloat16_winograd4 accepts what it has fewer of, by the same estimates,
// and bfloat16_polyphase for stride 2.
// stream accepts few pixels, forward, where reading the weights in place costs less than packing
// them. Winograd, of stride 2 that of its phases (polyphase), accepts when its estimated time is
// below that of the direct kernel. Estimates are cycles of one core that does two vector
// multiply-adds a cycle: products plus transforms. They follow from the shape and the width of the
// vectors, so the choice is the same for any number of threads.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "conv_choose.h"

namespace gs {

namespace {

std::atomic<bool> strict{false};
std::atomic<int> forced{0};  // 0: no; else 1 + index into the list
std::atomic<int64_t> pretended_l2{0};

bool verbose() {
  static const bool on = [] {
    const char* v = getenv("GRADSMITH_VERBOSE");
    return v && *v && *v != '0';
  }();
  return on;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
double min(double a, double b) { return a < b ? a : b; }

// Vectors that hold `count` elements.
double vectors(int64_t count, DType dtype) {
  const char* isa = isa_active();
  int64_t bytes = strncmp(isa, "avx512", 6) == 0 || strcmp(isa, "amx") == 0 ? 64
                  : strcmp(isa, "avx2") == 0                                ? 32
                                                                            : 16;
  return (double)ceil_div(count, bytes / (dtype == kF64 ? 8 : 4));
}

// Rows (or columns) times taps that lie inside.
double taps_inside(int64_t in, int64_t out, int64_t kernel, int64_t pad) {
  double before = (double)pad, after = (double)(out + kernel - 1 - in - pad);
  return (double)(out * kernel) - before * (before + 1) / 2 - after * (after + 1) / 2;
}

bool is_winograd(const ConvParams& p) {
  return p.kernel_h == 3 && p.kernel_w == 3 && p.stride_h == 1 && p.stride_w == 1 &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.groups == 1 && p.pad_h <= 2 && p.pad_w <= 2 &&
         p.out_h <= p.in_h + 2 && p.out_w <= p.in_w + 2;
}

double direct_cycles(ConvPass pass, DType dtype, const ConvParams& p) {
  double taps = (double)p.n * taps_inside(p.in_h, p.out_h, 3, p.pad_h) *
                taps_inside(p.in_w, p.out_w, 3, p.pad_w);
  double forward = taps * (double)p.channels * vectors(p.filters, dtype) / 2;
  double backward = taps * (double)p.filters * vectors(p.channels, dtype) / 2;
  if (pass == kConvForward) return forward;
  if (pass == kConvBackwardData) return backward;
  // With few channels the vectors of the weight gradient run over the filters.
  double weight = 1.1 * (p.channels < 16 ? forward : backward);
  return pass == kConvBackwardWeight ? weight : backward + weight;
}

// Cycles to transform a vector of a tile: inputs, outputs, dy, dx, and of a filter.
struct Transforms {
  double input, output, gradient, input_gradient, filter;
};

// rate: of a product, beside a multiply-add of float32 in less time
double winograd_cycles(int64_t m, ConvPass pass, DType dtype, const ConvParams& p,
                       double rate = 1) {
  const Transforms t = m == 4 ? Transforms{170, 110, 120, 200, 70} : Transforms{60, 40, 50, 75, 30};
  double tiles = (double)(p.n * ceil_div(p.out_h, m) * ceil_div(p.out_w, m));
  double C = (double)p.channels, K = (double)p.filters;
  double Cv = vectors(p.channels, dtype), Kv = vectors(p.filters, dtype);
  double planes = (double)((m + 2) * (m + 2));
  double product = 0.55 * tiles * planes * rate;
  if (pass == kConvForward)
    return product * C * Kv + tiles * (t.input * Cv + t.output * Kv) + 1.3 * t.filter * C * Kv;
  double r = tiles * t.gradient * Kv;
  if (pass != kConvBackwardWeight)
    r += product * K * Cv + tiles * t.input_gradient * Cv + t.filter * K * Cv;
  if (pass != kConvBackwardData) r += product * K * Cv + tiles * t.input * Cv + t.filter * K * Cv;
  return r;
}

struct Implementation {
  const char* name;
  bool (*can)(const ConvParams& p);
  bool (*accepts)(ConvPass pass, DType dtype, const ConvParams& p, double* own, double* direct);
  Kernel kernels[4];  // by ConvPass; without a name: not of this pass
  bool joint;
};

// Outputs times taps of one axis that lie inside.
int64_t count_inside(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                     int64_t dilation) {
  int64_t r = 0;
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < kernel; ++i) {
      int64_t at = o * stride - pad + i * dilation;
      r += at >= 0 && at < in;
    }
  return r;
}

bool is_polyphase(const ConvParams& p) {
  return p.kernel_h == 3 && p.kernel_w == 3 && p.stride_h == 2 && p.stride_w == 2 &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.groups == 1 && p.pad_h <= 2 && p.pad_w <= 2 &&
         !p.pool;
}

// Multiply-adds of taps that lie inside, of convolutions that is_polyphase() accepts.
int64_t polyphase_taps(const ConvParams& p) {
  return p.n * count_inside(p.in_h, p.out_h, 3, 2, p.pad_h, 1) *
         count_inside(p.in_w, p.out_w, 3, 2, p.pad_w, 1);
}
int64_t polyphase_tiles(const ConvParams& p) {
  return p.n * ceil_div(p.out_h, 4) * ceil_div(p.out_w, 4);
}

// 81 products a tile of 4 x 4 outputs, see conv/polyphase.h.
bool polyphase_wins(ConvPass pass, DType dtype, const ConvParams& p, double* own, double* direct) {
  if (dtype != kF32 || pass == kConvBackward || strict.load(std::memory_order_relaxed))
    return false;
  // the direct kernels have forms of their own for few channels
  if (p.channels < 16 || p.filters < 16) return false;
  // members share images and panels of channels of dx
  if (pass == kConvBackwardData && p.n * ceil_div(p.channels, 64) < 8) return false;
  // few tasks, and of few filters
  if (pass == kConvBackwardWeight && p.channels * p.filters < 4096) return false;
  const double tiles = (double)polyphase_tiles(p), taps = (double)polyphase_taps(p);
  const double C = (double)p.channels, K = (double)p.filters;
  const double Cv = vectors(p.channels, dtype), Kv = vectors(p.filters, dtype);
  const double forward = taps * C * Kv / 2, backward = taps * K * Cv / 2;
  // a transform of a tile: 81 loads and stores; of a vector of filters: 36 stores to memory that is
  // in no near cache
  const double pixels = tiles * (250 * Cv + 180 * Kv), product = 0.55 * 81 * tiles;
  *direct = pass == kConvForward ? forward : backward;
  *own = (product + 250) * (pass == kConvForward ? C * Kv : K * Cv) + pixels;
  return *own < 0.9 * *direct;
}

constexpr int64_t kFewPixels = 64;

// Few pixels: the others' time is that of packing or transforming the weights, of which they make
// little use. Measured: a cycle for each weight that is packed, 140 and 240 more than
// winograd_cycles() counts for a vector of filters that is transformed once and not found in a
// cache. The kernel that reads the weights where they lie takes twice the cycles of its products
// and of the sums that pass through the first cache at each tap, and 8 to fold a sum.
bool stream_wins(ConvPass pass, DType dtype, const ConvParams& p, double* own, double* next) {
  int64_t pixels = p.n * p.out_h * p.out_w;
  if (pass != kConvForward || pixels > kFewPixels) return false;
  double taps =
      (double)(p.n * count_inside(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h) *
               count_inside(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w));
  double ci = (double)(p.channels / p.groups), K = (double)p.filters;
  double Kv = (double)p.groups * vectors(p.filters / p.groups, dtype);
  double stream = K * (taps * (vectors(p.channels / p.groups, dtype) + 2) + 8 * (double)pixels);
  double others = taps * ci * Kv / 2 + K * (double)(p.kernel_h * p.kernel_w) * ci;
  if (dtype == kF32 && is_winograd(p)) {
    others = min(others, winograd_cycles(2, pass, dtype, p) + 140 * ci * Kv);
    if (!strict.load(std::memory_order_relaxed))
      others = min(others, winograd_cycles(4, pass, dtype, p) + 240 * ci * Kv);
  }
  if (stream >= 0.9 * others) return false;
  *own = stream;
  *next = others;
  return true;
}

bool any(const ConvParams&) { return true; }
bool is_depthwise(const ConvParams& p) {
  return p.groups > 1 && p.groups == p.channels && p.groups == p.filters;
}
bool is_wide(const ConvParams& p) {
  return p.channels / p.groups >= 8 && p.filters / p.groups >= 8;
}
bool always(ConvPass, DType, const ConvParams&, double*, double*) { return true; }

template <int M>
bool winograd_wins(ConvPass pass, DType dtype, const ConvParams& p, double* own, double* direct) {
  // float64 is asked for where rounding matters more than time.
  if (dtype != kF32 || (M == 4 && strict.load(std::memory_order_relaxed))) return false;
  *own = winograd_cycles(M, pass, dtype, p);
  *direct = direct_cycles(pass, dtype, p);
  if (M == 4 && winograd_cycles(2, pass, dtype, p) < *own) return false;
  return *own < 0.9 * *direct;
}

// Whether a multiply-add of rounded operands has twice the rate of float32's: AMD's vdpbf16ps.
bool twice_as_fast() {
#if defined(__x86_64__)
  return strcmp(isa_active(), "avx512bf16") == 0 && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// Cycles of a bfloat16 kernel beside the direct one's of float32: tiles win always. AMD's vdpbf16ps
// has twice the rate of a multiply-add, Intel's the same at best, and packing takes a third;
// without either, rounding comes on top of float32's products.
bool bfloat16_wins(ConvPass pass, DType dtype, const ConvParams& p, double* own, double* direct) {
  if (dtype != kF32 || !autocast()) return false;
  if (strcmp(isa_active(), "amx") == 0) return true;
  if (!twice_as_fast()) return false;
  return !is_winograd(p) ||
         !(winograd_wins<4>(pass, dtype, p, own, direct) ||
           winograd_wins<2>(pass, dtype, p, own, direct)) ||
         0.65 * *direct < *own;
}

// The products of Winograd's planes, rounded: half of the time, the transforms stay. F(4 x 4)
// alone; its rounding is that of bfloat16 three to five times over, so not where it is to be small.
bool bfloat16_winograd_wins(ConvPass pass, DType dtype, const ConvParams& p, double* own,
                            double* direct) {
  if (dtype != kF32 || !autocast() || strict.load(std::memory_order_relaxed) || !twice_as_fast())
    return false;
  *own = winograd_cycles(4, pass, dtype, p, 0.5);
  *direct = 0.65 * direct_cycles(pass, dtype, p);
  return *own < 0.9 * *direct && *own < winograd_cycles(2, pass, dtype, p);
}

// The same of stride 2, beside the direct products of pairs. Cycles as measured: products of either
// at 0.57 and 0.55 a vector, the transforms of a tile, which wait for memory, and what the direct
// kernel packs, so that it gains less from few channels.
bool bfloat16_polyphase_wins(ConvPass pass, DType dtype, const ConvParams& p, double* own,
                             double* direct) {
  if (dtype != kF32 || !autocast() || pass == kConvBackward ||
      strict.load(std::memory_order_relaxed) || !twice_as_fast())
    return false;
  // tasks for some members: see polyphase_wins()
  if (pass == kConvBackwardData && p.n * ceil_div(p.channels, 64) < 8) return false;
  if (pass == kConvBackwardWeight && ceil_div(p.channels, 64) * ceil_div(p.filters, 16) < 4)
    return false;
  const double tiles = (double)polyphase_tiles(p), taps = (double)polyphase_taps(p);
  const double Cv = vectors(p.channels, dtype), Kv = vectors(p.filters, dtype);
  const int64_t in = pass == kConvForward ? p.channels : p.filters;
  const double sums = (double)in, out = pass == kConvForward ? Kv : Cv;
  const double pixels = pass == kConvForward ? 500 : pass == kConvBackwardData ? 900 : 600;
  *direct = taps * (0.55 * sums * ceil((double)out / 2) + 7 * ceil(sums / 32) + 2 * out) +
            40 * sums * out;
  *own = (0.57 / 2 * 81 * tiles + 150) * sums * out + tiles * (pixels * Cv + 100 * Kv);
  // what is this short, or has few tiles for the transformed filters that members share, is over
  // before other members have their part
  return *direct > (tiles < 32 ? 1e6 : 150e3) && *own < 0.9 * *direct;
}

bool is_wide_winograd(const ConvParams& p) { return is_winograd(p) && is_wide(p); }
bool is_wide_polyphase(const ConvParams& p) { return is_polyphase(p) && is_wide(p); }

const Implementation implementations[] = {
    {"bfloat16_winograd4",
     is_wide_winograd,
     bfloat16_winograd_wins,
     {Kernel("conv_bf16_winograd4_forward"), Kernel("conv_bf16_winograd4_backward"),
      Kernel("conv_bf16_winograd4_backward"), Kernel("conv_bf16_winograd4_backward")},
     true},
    {"bfloat16_polyphase",
     is_wide_polyphase,
     bfloat16_polyphase_wins,
     {Kernel("conv_bf16_polyphase_forward"), Kernel("conv_bf16_polyphase_backward_data"),
      Kernel("conv_bf16_polyphase_backward_weight"), Kernel("")},
     false},
    {"bfloat16",
     is_wide,
     bfloat16_wins,
     {Kernel("conv_bf16_forward"), Kernel("conv_bf16_backward_data"),
      Kernel("conv_bf16_backward_weight"), Kernel("")},
     false},
    {"depthwise",
     is_depthwise,
     always,
     {Kernel("conv_depthwise_forward"), Kernel("conv_depthwise_backward_data"),
      Kernel("conv_depthwise_backward_weight"), Kernel("")},
     false},
    {"stream",
     any,
     stream_wins,
     {Kernel("conv_stream_forward"), Kernel(""), Kernel(""), Kernel("")},
     false},
    {"winograd4",
     is_winograd,
     winograd_wins<4>,
     {Kernel("conv_winograd4_forward"), Kernel("conv_winograd4_backward"),
      Kernel("conv_winograd4_backward"), Kernel("conv_winograd4_backward")},
     true},
    {"winograd2",
     is_winograd,
     winograd_wins<2>,
     {Kernel("conv_winograd2_forward"), Kernel("conv_winograd2_backward"),
      Kernel("conv_winograd2_backward"), Kernel("conv_winograd2_backward")},
     true},
    {"polyphase",
     is_polyphase,
     polyphase_wins,
     {Kernel("conv_polyphase_forward"), Kernel("conv_polyphase_backward_data"),
      Kernel("conv_polyphase_backward_weight"), Kernel("")},
     false},
    {"direct",
     any,
     always,
     {Kernel("conv_direct_forward"), Kernel("conv_direct_backward_data"),
      Kernel("conv_direct_backward_weight"), Kernel("")},
     false},
};

bool half_of(const Implementation& i) {
  return i.accepts == bfloat16_wins || i.accepts == bfloat16_winograd_wins ||
         i.accepts == bfloat16_polyphase_wins;
}

void explain(ConvPass pass, const ConvParams& p, const char* name, double own, double direct) {
  const bool stream = strcmp(name, "stream") == 0;
  static const char* const passes[] = {"forward", "backward data", "backward weight", "backward"};
  fprintf(stderr,
          "gradsmith: conv %lldx%lld/%lld (%lld, %lld, %lld, %lld) -> (%lld, %lld, %lld) %s: %s",
          (long long)p.kernel_h, (long long)p.kernel_w, (long long)p.stride_h, (long long)p.n,
          (long long)p.in_h, (long long)p.in_w, (long long)p.channels, (long long)p.out_h,
          (long long)p.out_w, (long long)p.filters, passes[pass], name);
  if (forced.load())
    fprintf(stderr, " (forced)\n");
  else if (own > 0)
    fprintf(stderr, " (%s %.3g cycles, %s %.3g%s)\n", stream ? "stream" : "winograd", own,
            stream ? "next" : "direct", direct, strict.load() ? ", strict" : "");
  else
    fprintf(stderr, " (first that can%s)\n", strict.load() ? ", strict" : "");
}

}  // namespace

namespace {

// A choice made before, so that a small convolution does not pay the estimates at each call.
struct Made {
  ConvParams p;
  ConvPass pass;
  DType dtype;
  bool autocast, strict;
  ConvChoice choice;  // without a kernel while there is none
};
constexpr int kMade = 32;
thread_local Made made[kMade];

ConvChoice choose(ConvPass pass, DType dtype, const ConvParams& p, int force);

}  // namespace

ConvChoice conv_choose(ConvPass pass, DType dtype, const ConvParams& p) {
  const int force = forced.load(std::memory_order_relaxed);
  if (force || verbose()) return choose(pass, dtype, p, force);
  const bool half = autocast(), exact = strict.load(std::memory_order_relaxed);
  const int64_t mix = p.in_h * 31 + p.channels * 17 + p.filters * 7 + p.kernel_w * 5 +
                      p.stride_w * 3 + p.n + (int64_t)pass * 13;
  Made& m = made[(uint64_t)(mix * 0x9E3779B97F4A7C15) >> 59];
  if (m.choice.kernel && m.pass == pass && m.dtype == dtype && m.autocast == half &&
      m.strict == exact && memcmp(&m.p, &p, sizeof(p)) == 0)
    return m.choice;
  m = Made{p, pass, dtype, half, exact, choose(pass, dtype, p, 0)};
  return m.choice;
}

namespace {

ConvChoice choose(ConvPass pass, DType dtype, const ConvParams& p, int force) {
  double own = 0, direct = 0;
  const Implementation* i = implementations;
  if (force) {
    const Implementation& f = implementations[force - 1];
    // bfloat16 is forced only where autocast asks for it, polyphase for float32, stream only
    // forward
    bool asked = half_of(f)                    ? dtype == kF32 && autocast()
                 : f.accepts == polyphase_wins ? dtype == kF32
                                               : true;
    if (!f.can(p) || !f.kernels[0].get(dtype) || !asked ||
        (pass != kConvForward && !*f.kernels[kConvBackwardData].name))
      force = 0;
  }
  if (force)
    i = implementations + (force - 1);
  else
    while (!i->can(p) || !i->accepts(pass, dtype, p, &own, &direct)) ++i;
  if (verbose()) explain(pass, p, i->name, own, direct);
  bool joint = i->joint && pass != kConvForward;
  return ConvChoice{pass == kConvBackward && !joint ? nullptr : &i->kernels[pass], joint,
                    i->accepts != bfloat16_wins};
}

}  // namespace

const char* conv_set_precision(const char* name) {
  bool s = strcmp(name, "strict") == 0;
  if (!s && strcmp(name, "default") != 0) return "expected 'default' or 'strict'";
  strict.store(s);
  return nullptr;
}

int64_t conv_l2() {
  int64_t l2 = pretended_l2.load(std::memory_order_relaxed);
  return l2 ? l2 : machine().l2;
}

const char* conv_get_precision() { return strict.load() ? "strict" : "default"; }

const char* conv_force(const char* name, int64_t l2) {
  if (l2 < 0) return "l2 must not be negative";
  pretended_l2.store(l2);
  if (!*name) {
    forced.store(0);
    return nullptr;
  }
  int count = (int)(sizeof(implementations) / sizeof(implementations[0]));
  for (int i = 0; i < count; ++i)
    if (implementations[i].can != is_depthwise && strcmp(name, implementations[i].name) == 0) {
      forced.store(i + 1);
      return nullptr;
    }
  return "expected 'bfloat16_winograd4', 'bfloat16_polyphase', 'bfloat16', 'stream', 'winograd4', "
         "'winograd2', 'polyphase', 'direct' or ''";
}

}  // namespace gs
