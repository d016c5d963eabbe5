// Thread-local variables.
#pragma once
#include "llvm/IR/Module.h"

namespace unify {

// Gather them into one image, which every thread gets a copy of, at a constant distance from its thread pointer.
void gatherThreadLocals(llvm::Module &M);

}  // namespace unify
