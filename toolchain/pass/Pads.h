// Frames made longer, where code generation for one ISA needs more room than for another.
#pragma once
#include "llvm/IR/Module.h"
#include <map>

namespace unify {

// Make frame objects longer, away from the frame pointer: bytes by the frames' numbers.
void padFrames(llvm::Module &M, const std::map<uint64_t, uint64_t> &Bytes);

}  // namespace unify
