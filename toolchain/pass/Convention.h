// One calling convention for everything that can be stopped: no register but the frame pointer survives a call.
#pragma once
#include "llvm/IR/Module.h"

namespace unify {

void applyConvention(llvm::Module &M);

}  // namespace unify
