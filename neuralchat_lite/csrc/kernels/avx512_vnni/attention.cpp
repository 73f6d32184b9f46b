#include "kernels/attention.h"

#include "kernels/avx512_vnni/avx512_vnni.h"
#include "kernels/avx512_vnni/floats.h"

namespace ncl::avx512_vnni {

template <KVType type>
void attend(const AttentionTask& task) {
  PartOfAttention<Floats16, type>(task).run();
}

template void attend<KVType::kFp32>(const AttentionTask&);
template void attend<KVType::kBf16>(const AttentionTask&);
template void attend<KVType::kInt8>(const AttentionTask&);

}  // namespace ncl::avx512_vnni
