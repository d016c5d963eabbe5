// The proof that generated code keeps no state beside the frame.
#pragma once
#include "llvm/Pass.h"

namespace unify {

// A pass over machine code after register allocation; it reports each function and block that breaks the rule.
llvm::Pass *createProof();

// Whether any was reported.
bool proofFailed();

}  // namespace unify
