// A poll is one nop at the top of a loop. It costs next to nothing, and registers are live there; but it has a second
// way out, which is never taken by itself: a call, with homes for what is live like for every call, and back behind the
// nop. Who wants to stop the process sets a breakpoint at the nop, and lets the thread go on by the other way.
#include "Polls.h"

#include "Calls.h"
#include "llvm/IR/CFG.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InlineAsm.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/MDBuilder.h"
#include <set>

using namespace llvm;

namespace unify {

namespace {

// Loops that together turn at most so often between two stops need none: some microseconds.
constexpr unsigned ShortLoop = 4096;
constexpr char Polled[] = "__unified_poll";

Function *polled(Module &M) {
  if (Function *Known = M.getFunction(Polled))
    return Known;
  auto *Type = FunctionType::get(Type::getVoidTy(M.getContext()), false);
  auto *New = Function::Create(Type, GlobalValue::ExternalLinkage, Polled, M);
  New->setCallingConv(CallingConv::PreserveNone);
  New->addFnAttr("frame-pointer", "all");
  New->setSection((".text." + StringRef(Polled)).str());
  IRBuilder<>(BasicBlock::Create(M.getContext(), "", New)).CreateRetVoid();
  return New;
}

bool stops(const BasicBlock &Block) { return any_of(Block, isStop) || isa<CallBrInst>(Block.getTerminator()); }

// Edges that lead back, in an order of depth first from the entry: each cycle has one.
std::vector<std::pair<BasicBlock *, BasicBlock *>> edgesBack(Function &F) {
  std::vector<std::pair<BasicBlock *, BasicBlock *>> Found;
  std::vector<std::pair<BasicBlock *, succ_iterator>> Path{{&F.getEntryBlock(), succ_begin(&F.getEntryBlock())}};
  std::set<BasicBlock *> Seen{&F.getEntryBlock()}, OnPath = Seen;
  while (!Path.empty()) {
    auto &[Block, Next] = Path.back();
    if (Next == succ_end(Block)) {
      OnPath.erase(Block);
      Path.pop_back();
      continue;
    }
    BasicBlock *To = *Next++;
    if (OnPath.count(To))
      Found.emplace_back(Block, To);
    else if (Seen.insert(To).second) {
      OnPath.insert(To);
      Path.emplace_back(To, succ_begin(To));
    }
  }
  return Found;
}

// Whether a way leads from `From` to `To` that meets no stop.
bool reachesWithoutStop(BasicBlock *From, BasicBlock *To) {
  std::set<BasicBlock *> Seen{From};
  std::vector<BasicBlock *> Left{From};
  while (!Left.empty()) {
    BasicBlock *Block = Left.back();
    Left.pop_back();
    if (stops(*Block))
      continue;
    if (Block == To)
      return true;
    for (BasicBlock *Next : successors(Block))
      if (Seen.insert(Next).second)
        Left.push_back(Next);
  }
  return false;
}

// How often a loop and those in it turn at most; 0 for what is not known.
uint64_t turns(const Loop &L, ScalarEvolution &Counts) {
  uint64_t Own = Counts.getSmallConstantMaxTripCount(&L), Inner = 1;
  for (const Loop *Sub : L) {
    uint64_t One = turns(*Sub, Counts);
    if (!One)
      return 0;
    Inner += One;
  }
  return std::min<uint64_t>(Own, ShortLoop + 1) * std::min<uint64_t>(Inner, ShortLoop + 1);
}

bool isShort(const BasicBlock *Header, const LoopInfo &Loops, ScalarEvolution &Counts) {
  const Loop *L = Loops.getLoopFor(Header);
  if (!L || L->getHeader() != Header)
    return false;
  uint64_t Turns = turns(*L, Counts);
  return Turns && Turns <= ShortLoop;
}

void insertPoll(BasicBlock *Header) {
  LLVMContext &Context = Header->getContext();
  BasicBlock *Body = Header->splitBasicBlock(Header->getFirstNonPHIOrDbgOrAlloca(), "polled");
  auto *Way = BasicBlock::Create(Context, "poll", Header->getParent());
  Header->getTerminator()->eraseFromParent();
  auto *Type = FunctionType::get(Type::getVoidTy(Context), false);
  // The text comes with the poll's number.
  auto *Marker = InlineAsm::get(Type, "", "!i", /*hasSideEffects=*/true);
  auto *Poll = IRBuilder<>(Header).CreateCallBr(Type, Marker, Body, {Way}, {});
  Poll->addFnAttr(Attribute::NoUnwind);
  Poll->setMetadata(LLVMContext::MD_prof, MDBuilder(Context).createBranchWeights(1 << 30, 1));
  IRBuilder<> Builder(Way);
  CallInst *Call = Builder.CreateCall(polled(*Header->getModule()));
  Call->setCallingConv(CallingConv::PreserveNone);
  Call->setTailCallKind(CallInst::TCK_NoTail);
  Builder.CreateBr(Body);
}

}  // namespace

void insertPolls(Function &F, const LoopInfo &Loops, ScalarEvolution &Counts) {
  std::vector<BasicBlock *> Headers;
  std::set<BasicBlock *> Chosen;
  for (auto [From, To] : edgesBack(F))
    if (reachesWithoutStop(To, From) && !isShort(To, Loops, Counts) && Chosen.insert(To).second)
      Headers.push_back(To);
  for (BasicBlock *Header : Headers)
    insertPoll(Header);
}

std::vector<CallBrInst *> pollsOf(Function &F) {
  std::vector<CallBrInst *> Found;
  for (BasicBlock &Block : F)
    if (auto *Poll = dyn_cast<CallBrInst>(Block.getTerminator()))
      Found.push_back(Poll);
  return Found;
}

}  // namespace unify
