#include "Refusals.h"

#include "llvm/IR/InlineAsm.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/IntrinsicInst.h"
#include "llvm/Support/raw_ostream.h"

using namespace llvm;

namespace unify {

static bool report(const Twine &Where, StringRef Reason) {
  errs() << "error: " << Where << ": " << Reason << " cannot be made migratable\n";
  return false;
}

static StringRef reasonAgainst(const Instruction &I) {
  if (isa<InvokeInst>(I) || isa<LandingPadInst>(I) || isa<ResumeInst>(I))
    return "C++ exceptions";
  if (isa<CallBrInst>(I))
    return "inline assembly";
  const auto *Call = dyn_cast<CallInst>(&I);
  if (!Call)
    return "";
  if (Call->isInlineAsm() && !cast<InlineAsm>(Call->getCalledOperand())->getAsmString().empty())
    return "inline assembly";
  if (const Function *Callee = Call->getCalledFunction())
    if (Callee->isIntrinsic() && Callee->getName().starts_with("llvm.aarch64."))
      return "an intrinsic of one ISA only";
  return "";
}

bool checkMigratable(Module &M) {
  bool Good = true;
  for (GlobalVariable &G : M.globals())
    if (G.isThreadLocal() && G.isDeclaration() && !G.use_empty())
      Good = report(G.getName(), "a thread-local variable that is defined nowhere");
  for (Function &F : M)
    for (Instruction &I : instructions(F))
      if (StringRef Reason = reasonAgainst(I); !Reason.empty())
        Good = report(F.getName(), Reason);
  return Good;
}

}  // namespace unify
