#include "kernels/attention.h"

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/floats.h"

namespace ncl::avx2 {

template <KVType type>
void attend(const AttentionTask& task) {
  PartOfAttention<Floats8, type>(task).run();
}

template void attend<KVType::kFp32>(const AttentionTask&);
template void attend<KVType::kBf16>(const AttentionTask&);
template void attend<KVType::kInt8>(const AttentionTask&);

}  // namespace ncl::avx2
