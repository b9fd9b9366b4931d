#pragma once
#include <pybind11/pybind11.h>

namespace atrousops {

// Python: straight(tensor, types, forced, grad_enabled, autocast, otherwise) -> (run, known, note, forget), functions
// that remember which calls of an operator go to PyTorch's own as they are; None where `tensor` has no DLPack exchange
// API.
//   run(call, input, weight, bias, *args): call.aten(input, weight, bias, *args) if this is known; where it is not, or
//     PyTorch refuses it, otherwise(call, input, weight, bias, *args).
//   known(call, input, weight, bias, *args) -> bool: whether this very call was noted, and its input is clean.
//   note(call, input, weight, args, step): nothing else about it must be looked at again; in the input, one block of
//     core::kSubnormalBlock elements in `step` for subnormals, or none if that is 0. Only calls on the CPU are kept.
//   forget(): drops them all.
// A call is told by `call` itself, the input's shape, strides and dtype, the identity and version of the weight,
// `args`, whether a gradient is wanted and whether autocast is on; tensors are of `types` exactly and forced[0] is
// None. PyTorch checks the bias.
void bind_straight(pybind11::module_& m);

}  // namespace atrousops
