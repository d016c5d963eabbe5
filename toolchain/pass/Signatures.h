// Signatures for which no ISA needs the stack, where each has its own idea of what lies where.
#pragma once
#include "llvm/IR/Module.h"

namespace unify {

// Variable arguments, those beyond the registers and large results go through buffers in the caller's frame.
void simplifySignatures(llvm::Module &M);

}  // namespace unify
