// A function keeps the parameters that fit into registers on all ISAs; the rest, and variable arguments, are packed as
// on AAPCS64's stack (8 bytes or a multiple, 16 where so aligned) into a buffer whose address comes last. Its va_list
// has used up its registers from the start, so that all of va_arg reads the buffer. A result of more than two registers
// goes where the first parameter points. Everything is decided by the type alone, so calls by pointer agree.
#include "Signatures.h"

#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/IntrinsicInst.h"

using namespace llvm;

namespace unify {

namespace {

constexpr unsigned FloatRegisters = 8, ResultRegisters = 2;

// x86-64's are the fewer ones: twelve, of which integers of less than 64 bits take those that C gives arguments, only.
constexpr unsigned AllIntegers = 0xfff, SmallIntegers = 0x3f0;

struct Registers {
  unsigned Integer = 0, Small = 0, Float = 0;
};

Registers registersFor(Type *T, const DataLayout &DL) {
  if (auto *Struct = dyn_cast<StructType>(T)) {
    Registers Sum;
    for (Type *Element : Struct->elements()) {
      Registers One = registersFor(Element, DL);
      Sum.Integer += One.Integer, Sum.Small += One.Small, Sum.Float += One.Float;
    }
    return Sum;
  }
  if (auto *Array = dyn_cast<ArrayType>(T)) {
    Registers One = registersFor(Array->getElementType(), DL);
    unsigned Count = Array->getNumElements();
    return {One.Integer * Count, One.Small * Count, One.Float * Count};
  }
  if (T->isFPOrFPVectorTy() || T->isVectorTy())
    return {0, 0, std::max(1u, unsigned(DL.getTypeStoreSize(T) / 16))};
  unsigned Words = divideCeil(DL.getTypeStoreSize(T), 8);
  return T->isIntegerTy() && T->getIntegerBitWidth() <= 32 ? Registers{0, 1, 0} : Registers{Words, 0, 0};
}

// Arguments take registers one after the other, each the first that is free of those it can have.
struct Taken {
  unsigned Integers = 0, Floats = 0;

  bool take(const Registers &Wanted) {
    Floats += Wanted.Float;
    return take(Wanted.Integer, AllIntegers) && take(Wanted.Small, SmallIntegers) && Floats <= FloatRegisters;
  }

  bool hasRoom() const { return Integers != AllIntegers; }

private:
  bool take(unsigned Count, unsigned Of) {
    for (; Count; --Count) {
      unsigned Free = Of & ~Integers;
      if (!Free)
        return false;
      Integers |= Free & -Free;
    }
    return true;
  }
};

// What becomes of a function type.
struct Plan {
  FunctionType *Type;
  unsigned Kept;  // parameters that stay parameters
  bool Packs, ReturnsByPointer;

  Plan(FunctionType *Old, const DataLayout &DL) {
    LLVMContext &Context = Old->getContext();
    llvm::Type *Result = Old->getReturnType();
    Registers Returned = Result->isVoidTy() ? Registers() : registersFor(Result, DL);
    ReturnsByPointer = Returned.Integer + Returned.Small > ResultRegisters || Returned.Float > ResultRegisters;
    std::vector<llvm::Type *> Parameters;
    if (ReturnsByPointer)
      Parameters.push_back(PointerType::get(Context, 0));
    Kept = fitting(Old, DL, Parameters.size());
    for (unsigned Index = 0; Index < Kept; ++Index)
      Parameters.push_back(Old->getParamType(Index));
    Packs = Old->isVarArg() || Kept < Old->getNumParams();
    if (Packs)
      Parameters.push_back(PointerType::get(Context, 0));
    Type = FunctionType::get(ReturnsByPointer ? llvm::Type::getVoidTy(Context) : Result, Parameters, false);
  }

  static unsigned fitting(FunctionType *Old, const DataLayout &DL, unsigned Used) {
    Taken Now;
    Now.take({Used, 0, 0});
    std::vector<Taken> Before{Now};
    for (unsigned Index = 0; Index < Old->getNumParams(); ++Index) {
      if (!Now.take(registersFor(Old->getParamType(Index), DL)))
        return room(Before, Index);
      Before.push_back(Now);
    }
    return Old->isVarArg() ? room(Before, Old->getNumParams()) : Old->getNumParams();
  }

  // At most `Count` of the parameters, so that there is a register for the buffer's address.
  static unsigned room(const std::vector<Taken> &Before, unsigned Count) {
    while (Count && !Before[Count].hasRoom())
      --Count;
    return Count;
  }
};

struct Packing {
  std::vector<uint64_t> Offsets;
  uint64_t Size = 0;

  void add(Type *T, const DataLayout &DL) {
    uint64_t Alignment = std::max<uint64_t>(8, std::min<uint64_t>(16, DL.getABITypeAlign(T).value()));
    Size = alignTo(Size, Alignment);
    Offsets.push_back(Size);
    Size += alignTo(DL.getTypeAllocSize(T), 8);
  }
};

class Rewriter {
public:
  explicit Rewriter(Module &M) : M(M), DL(M.getDataLayout()) {}

  void run() {
    std::vector<Function *> Functions;
    for (Function &F : M)
      if (!F.isIntrinsic())
        Functions.push_back(&F);
    for (Function *F : Functions)
      rewriteCalls(*F);
    for (Function *F : Functions)
      if (Plan(F->getFunctionType(), DL).Type != F->getFunctionType())
        rewrite(*F);
  }

private:
  Module &M;
  const DataLayout &DL;

  void rewriteCalls(Function &F) {
    std::vector<CallInst *> Calls;
    for (Instruction &I : instructions(F))
      if (auto *Call = dyn_cast<CallInst>(&I))
        if (!Call->isInlineAsm() && !(Call->getCalledFunction() && Call->getCalledFunction()->isIntrinsic()))
          Calls.push_back(Call);
    for (CallInst *Call : Calls) {
      Plan P(Call->getFunctionType(), DL);
      if (P.Type != Call->getFunctionType())
        rewrite(*Call, P);
    }
  }

  static AllocaInst *buffer(Function &F, uint64_t Size) {
    IRBuilder<> Start(&F.getEntryBlock(), F.getEntryBlock().begin());
    auto *Buffer = Start.CreateAlloca(ArrayType::get(Start.getInt8Ty(), std::max<uint64_t>(Size, 8)));
    Buffer->setAlignment(Align(16));
    return Buffer;
  }

  void rewrite(CallInst &Call, const Plan &P) {
    Function &F = *Call.getFunction();
    IRBuilder<> Before(&Call);
    std::vector<Value *> Arguments;
    AllocaInst *Result = nullptr;
    if (P.ReturnsByPointer)
      Arguments.push_back(Result = buffer(F, DL.getTypeAllocSize(Call.getType())));
    for (unsigned Index = 0; Index < P.Kept; ++Index)
      Arguments.push_back(Call.getArgOperand(Index));
    if (P.Packs)
      Arguments.push_back(pack(Call, P.Kept, Before));
    CallInst *New = Before.CreateCall(P.Type, Call.getCalledOperand(), Arguments);
    New->setDebugLoc(Call.getDebugLoc());
    if (Call.doesNotReturn())
      New->setDoesNotReturn();
    if (Call.hasFnAttr(Attribute::ReturnsTwice))
      New->addFnAttr(Attribute::ReturnsTwice);
    Value *Value = New;
    if (Result)
      Value = Before.CreateLoad(Call.getType(), Result);
    if (!Call.getType()->isVoidTy())
      Call.replaceAllUsesWith(Value);
    Call.eraseFromParent();
  }

  Value *pack(CallInst &Call, unsigned Kept, IRBuilder<> &Before) {
    Packing Packed;
    for (unsigned Index = Kept; Index < Call.arg_size(); ++Index)
      Packed.add(Call.getArgOperand(Index)->getType(), DL);
    AllocaInst *Buffer = buffer(*Call.getFunction(), Packed.Size);
    for (unsigned Index = Kept; Index < Call.arg_size(); ++Index)
      Before.CreateAlignedStore(whole(Call.getArgOperand(Index), Before),
                                Before.CreateConstGEP1_64(Before.getInt8Ty(), Buffer, Packed.Offsets[Index - Kept]),
                                Align(8));
    return Buffer;
  }

  // Programs give 0 for a pointer, of whose bytes an int has half; in registers, the others are 0 on both ISAs.
  static Value *whole(Value *V, IRBuilder<> &Before) {
    bool IsSmall = V->getType()->isIntegerTy() && V->getType()->getIntegerBitWidth() < 64;
    return IsSmall ? Before.CreateZExt(V, Before.getInt64Ty()) : V;
  }

  void rewrite(Function &Old) {
    FunctionType *OldType = Old.getFunctionType();
    Plan P(OldType, DL);
    Function *New = Function::Create(P.Type, Old.getLinkage(), Old.getAddressSpace(), "", &M);
    New->copyAttributesFrom(&Old);
    New->setAttributes(AttributeList::get(M.getContext(), AttributeList::FunctionIndex,
                                          AttrBuilder(M.getContext(), Old.getAttributes().getFnAttrs())));
    New->setVisibility(Old.getVisibility());
    New->takeName(&Old);
    if (!Old.isDeclaration()) {
      New->splice(New->begin(), &Old);
      moveParameters(Old, *New, P);
    }
    Old.replaceAllUsesWith(New);
    Old.eraseFromParent();
  }

  void moveParameters(Function &Old, Function &New, const Plan &P) {
    unsigned Shift = P.ReturnsByPointer;
    for (unsigned Index = 0; Index < P.Kept; ++Index)
      Old.getArg(Index)->replaceAllUsesWith(New.getArg(Index + Shift));
    IRBuilder<> Start(&*New.getEntryBlock().getFirstNonPHIOrDbgOrAlloca());
    Packing Packed;
    Argument *Buffer = P.Packs ? New.getArg(New.arg_size() - 1) : nullptr;
    for (unsigned Index = P.Kept; Index < Old.arg_size(); ++Index) {
      Type *T = Old.getArg(Index)->getType();
      Packed.add(T, DL);
      Value *Place = Start.CreateConstGEP1_64(Start.getInt8Ty(), Buffer, Packed.Offsets.back());
      Old.getArg(Index)->replaceAllUsesWith(Start.CreateAlignedLoad(T, Place, Align(8)));
    }
    if (P.ReturnsByPointer)
      for (BasicBlock &Block : New)
        if (auto *Return = dyn_cast<ReturnInst>(Block.getTerminator())) {
          IRBuilder<> End(Return);
          End.CreateStore(Return->getReturnValue(), New.getArg(0));
          End.CreateRetVoid();
          Return->eraseFromParent();
        }
    if (Old.isVarArg())
      startLists(New, Buffer, Packed.Size);
  }

  // va_list of AAPCS64: stack, gr_top, vr_top, and two offsets, at 0 where no register is left.
  static void startLists(Function &F, Argument *Buffer, uint64_t Offset) {
    for (Instruction &I : make_early_inc_range(instructions(F))) {
      auto *Call = dyn_cast<IntrinsicInst>(&I);
      if (!Call || Call->getIntrinsicID() != Intrinsic::vastart)
        continue;
      IRBuilder<> Before(Call);
      Value *List = Call->getArgOperand(0);
      Before.CreateMemSet(List, Before.getInt8(0), 32, Align(8));
      Before.CreateStore(Before.CreateConstGEP1_64(Before.getInt8Ty(), Buffer, Offset), List);
      Call->eraseFromParent();
    }
  }
};

void copyLists(Module &M) {
  for (Function &F : M)
    for (Instruction &I : make_early_inc_range(instructions(F))) {
      auto *Call = dyn_cast<IntrinsicInst>(&I);
      if (!Call)
        continue;
      if (Call->getIntrinsicID() == Intrinsic::vacopy)
        IRBuilder<>(Call).CreateMemCpy(Call->getArgOperand(0), Align(8), Call->getArgOperand(1), Align(8), 32);
      else if (Call->getIntrinsicID() != Intrinsic::vaend)
        continue;
      Call->eraseFromParent();
    }
}

}  // namespace

void simplifySignatures(Module &M) {
  copyLists(M);
  Rewriter(M).run();
}

}  // namespace unify
