#include "Calls.h"

#include "Polls.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InlineAsm.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/IntrinsicInst.h"

using namespace llvm;

namespace unify {

// What code generation calls for 128-bit numbers and complex ones: __addtf3, __udivti3, __fixtfdi, __muldc3 ...
static bool isCompilerRuntime(StringRef Name) {
  if (!Name.consume_front("__"))
    return false;
  if (Name.starts_with("fix") || Name.starts_with("float") || Name.starts_with("extend") || Name.starts_with("trunc"))
    return Name.contains("tf") || Name.contains("ti");
  for (StringRef End : {"tf2", "tf3", "ti2", "ti3", "ti4", "sc3", "dc3", "tc3"})
    if (Name.ends_with(End))
      return true;
  return false;
}

bool isLeafName(StringRef Name) {
  static const StringSet<> Names = {
      "memcpy", "memmove", "memset", "memcmp", "bcmp", "floor", "floorf", "floorl", "ceil", "ceilf", "ceill",
      "trunc", "truncf", "truncl", "rint", "rintf", "rintl", "nearbyint", "nearbyintf", "nearbyintl", "round",
      "roundf", "roundl", "roundeven", "roundevenf", "roundevenl", "fma", "fmaf", "fmal", "fmin", "fminf", "fminl",
      "fmax", "fmaxf", "fmaxl", "sqrt", "sqrtf", "sqrtl", "fmod", "fmodf", "fmodl"};
  return Names.contains(Name) || isCompilerRuntime(Name);
}

bool isStop(const Instruction &I) {
  const auto *Call = dyn_cast<CallInst>(&I);
  return Call && Call->getCallingConv() == CallingConv::PreserveNone;
}

bool mayStop(const Instruction &I) {
  const auto *Call = dyn_cast<CallBase>(&I);
  if (!Call || isa<IntrinsicInst>(I) || Call->isInlineAsm())
    return false;
  const auto *Callee = dyn_cast<Function>(Call->getCalledOperand()->stripPointerCastsAndAliases());
  return !Callee || !isLeafName(Callee->getName());
}

std::vector<CallInst *> stopsOf(Function &F) {
  std::vector<CallInst *> Found;
  for (Instruction &I : instructions(F))
    if (isStop(I))
      Found.push_back(cast<CallInst>(&I));
  return Found;
}

// A jmp_buf must mean the same on all ISAs, so setjmp gets the number of the site that it returns to, not an address.
static CallInst *numberSetjmp(CallInst *Call, unsigned Number) {
  const auto *Callee = dyn_cast<Function>(Call->getCalledOperand()->stripPointerCastsAndAliases());
  if (!Callee || (Callee->getName() != "setjmp" && Callee->getName() != "_setjmp"))
    return Call;
  IRBuilder<> Before(Call);
  Type *Long = Before.getInt64Ty();
  auto *Signature = FunctionType::get(Call->getType(), {Before.getPtrTy(), Long}, false);
  FunctionCallee Numbered = Call->getModule()->getOrInsertFunction("__unified_setjmp", Signature);
  CallInst *New = Before.CreateCall(Numbered, {Call->getArgOperand(0), ConstantInt::get(Long, Number)});
  New->setCallingConv(CallingConv::PreserveNone);
  New->setTailCallKind(CallInst::TCK_NoTail);
  New->addFnAttr(Attribute::ReturnsTwice);
  Call->replaceAllUsesWith(New);
  Call->eraseFromParent();
  return New;
}

unsigned markStops(Function &F, unsigned Number, unsigned Frame) {
  for (CallInst *Call : stopsOf(F)) {
    Call = numberSetjmp(Call, Number);
    Instruction *Next = Call->getNextNode();
    auto *Type = FunctionType::get(Type::getVoidTy(F.getContext()), false);
    std::string Text = "#UNIFIED-SITE " + std::to_string(Number++) + " " + std::to_string(Frame);
    auto *Marker = InlineAsm::get(Type, Text, "", /*hasSideEffects=*/true);
    IRBuilder<>(Next).CreateCall(Type, Marker)->setConvergent(); // code generation doubles no block that has it
    Call->getParent()->splitBasicBlock(Next, "after");
  }
  for (CallBrInst *Poll : pollsOf(F)) {
    std::string Text = "#UNIFIED-POLL " + std::to_string(Number++) + " " + std::to_string(Frame) + " ${0:l}";
    Poll->setCalledOperand(InlineAsm::get(Poll->getFunctionType(), Text, "!i", /*hasSideEffects=*/true));
  }
  return Number;
}

}  // namespace unify
