#include "Sections.h"

#include "llvm/IR/Module.h"

using namespace llvm;

namespace unify {

static std::string sectionOf(const GlobalVariable &G) {
  if (G.getName() == "unified.tls")
    return ".u.tdata.unified.tls";
  const char *Kind = G.isConstant() ? ".u.rodata." : G.getInitializer()->isNullValue() ? ".bss.u." : ".u.data.";
  return Kind + G.getName().str();
}

void separate(Module &M) {
  unsigned Unnamed = 0;
  for (GlobalVariable &G : M.globals()) {
    if (G.isDeclaration() || G.getName().starts_with("llvm."))
      continue;
    if (!G.hasName() || G.hasPrivateLinkage())
      G.setName(".l" + std::to_string(Unnamed++));
    G.setLinkage(GlobalValue::ExternalLinkage);
    G.setUnnamedAddr(GlobalValue::UnnamedAddr::None);
    G.setAlignment(std::max(M.getDataLayout().getABITypeAlign(G.getValueType()), G.getAlign().valueOrOne()));
    G.setSection(sectionOf(G));
  }
  for (Function &F : M)
    if (!F.isDeclaration()) {
      F.setLinkage(GlobalValue::ExternalLinkage);
      F.setSection(".text." + F.getName().str());
    }
}

}  // namespace unify
