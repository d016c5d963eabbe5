// Frames made longer, where code generation for one ISA needs more room than for another.
#pragma once
#include "llvm/IR/Module.h"
#include <map>

namespace unify {

// Bytes for one frame object: below its variables, away from the frame pointer, and above them, at it.
struct Pad {
  uint64_t Below, Above;
};

// Make frame objects longer, by the frames' numbers.
void padFrames(llvm::Module &M, const std::map<uint64_t, Pad> &Pads);

}  // namespace unify
