// The ordered list of convolution implementations: the first that accepts a problem runs it. All of
// them compute the same thing, so a new one (Winograd, a fused stem) is a line here above those it
// beats. GRADSMITH_VERBOSE=1 names the kernel that ran.
#include "conv_choose.h"

namespace gs {

namespace {

struct Implementation {
  bool (*accepts)(DType dtype, const ConvParams& p);
  Kernel kernels[3];  // by ConvPass
};

bool depthwise(DType, const ConvParams& p) {
  return p.groups > 1 && p.groups == p.channels && p.groups == p.filters;
}
bool always(DType, const ConvParams&) { return true; }

const Implementation implementations[] = {
    {depthwise,
     {Kernel("conv_depthwise_forward"), Kernel("conv_depthwise_backward_data"),
      Kernel("conv_depthwise_backward_weight")}},
    {always,
     {Kernel("conv_direct_forward"), Kernel("conv_direct_backward_data"),
      Kernel("conv_direct_backward_weight")}},
};

}  // namespace

const Kernel& conv_choose(ConvPass pass, DType dtype, const ConvParams& p) {
  const Implementation* i = implementations;
  while (!i->accepts(dtype, p)) ++i;
  return i->kernels[pass];
}

}  // namespace gs
