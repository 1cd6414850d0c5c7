// A CUDA device for a CPU build of torch: memory of the host, kernels of the CPU, the rules of a GPU.
//
//   autograd, vmap, make_fx, autocast and pinned memory work on it; Triton, cuDNN, streams do not
//   device mismatch   refused as on a GPU (CPU tensors of no dimension and indices are allowed)
//   host waits        counted: .item(), .cpu(), .to("cuda") from pageable memory
//   launches          counted by operator (views are none)
//   capture           what may not happen while a stream is captured is refused
//   memory            a limit, beyond which torch.OutOfMemoryError is raised
//   broken            a sticky error: from then on everything fails, as after a device-side assert
//   faults            the n-th allocation from now finds no memory, the n-th launch breaks the device
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/set_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

std::mutex counting;
std::map<std::string, int64_t> counts;
std::atomic<int64_t> held{0}, peak{0}, limit{INT64_C(1) << 40};
std::atomic<bool> capturing{false}, broken{false}, invalidated{false};
std::atomic<int64_t> until_no_memory{-1}, until_broken{-1};  // allocations, launches; -1: never
std::atomic<int64_t> allocations{0}, launches{0};
thread_local bool inside = false;  // within a fallback: its own copies are none of the program's
struct Inside {
  bool before = inside;
  Inside() { inside = true; }
  ~Inside() { inside = before; }
};

void count(const std::string& what) {
  std::lock_guard<std::mutex> lock(counting);
  ++counts[what];
}

void alive() {
  if (broken) {
    throw c10::AcceleratorError(
        {__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, 710,
        "CUDA error: device-side assert triggered");
  }
}

// Whether the fault is due now. It happens once.
bool due(std::atomic<int64_t>& until) {
  return until >= 0 && until-- == 0;
}

void launch(const std::string& name) {
  ++launches;
  if (due(until_broken)) broken = true;
  alive();
  count("launch " + name);
}

void no_capture(const char* what) {
  if (capturing) {
    throw c10::AcceleratorError(
        {__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, 900,
        std::string("CUDA error: operation not permitted when stream is capturing: ") + what);
  }
}

struct HostAllocator final : c10::Allocator {
  struct Block { void* data; int64_t size; };
  static void drop(void* context) {
    auto* block = static_cast<Block*>(context);
    held -= block->size;
    std::free(block->data);
    delete block;
  }
  c10::DataPtr allocate(size_t size) override {
    alive();
    const auto wanted = static_cast<int64_t>((size + 511) / 512 * 512);
    ++allocations;
    if (due(until_no_memory) || held + wanted > limit) {
      if (capturing && invalidated) {  // torch may have called cudaFree for it
        throw c10::AcceleratorError(
            {__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, 901,
            "CUDA error: operation failed due to a previous error during capture");
      }
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory (fake). Tried to allocate ",
                       wanted, " bytes; ", held.load(), " of ", limit.load(), " are held.");
    }
    if (size == 0) return {nullptr, Device(DeviceType::CUDA, 0)};
    auto* block = new Block{std::aligned_alloc(512, wanted), wanted};
    held += wanted;
    int64_t now = held, before = peak;
    while (now > before && !peak.compare_exchange_weak(before, now)) {}
    return {block->data, block, &drop, Device(DeviceType::CUDA, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    std::memcpy(to, from, size);
  }
};
HostAllocator allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return {DeviceType::CUDA, 0}; }
  Device getDevice() const override { return {DeviceType::CUDA, 0}; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  at::Device getDeviceFromPtr(void*) const override { return Device(DeviceType::CUDA, 0); }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  bool isAvailable() const override { return true; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(DeviceType::CPU); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  void deviceSynchronize(DeviceIndex) const override {}
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// The same memory, called a CPU's.
at::Tensor host(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  auto storage = c10::Storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
      c10::DataPtr(t.storage().mutable_data(), t.storage().mutable_data(), [](void*) {}, Device(DeviceType::CPU)),
      nullptr, false);
  auto alias = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
      c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.is_conj()) alias._set_conj(true);
  if (t.is_neg()) alias._set_neg(true);
  return alias;
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  alive();
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  alive();
  return at::detail::empty_strided_generic(size, stride, &allocator,
      c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  alive();
  if (inside) {
  } else if (self.device() == src.device()) launch("copy_");
  else if (src.is_cuda()) {
    count(non_blocking ? "device to host, non_blocking" : "wait: device to host");
    no_capture("device to host");
  } else {
    count(non_blocking ? "host to device, non_blocking" : "wait: host to device");
    if (src.dim() || src.numel()) no_capture("host to device");
  }
  auto to = host(self);
  at::AutoDispatchBelowADInplaceOrView below;
  to.copy_(host(src));
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  auto target = to;
  copy_(target, self, non_blocking);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  auto target = to;
  if (target.sizes() != self.sizes()) target.resize_(self.sizes());
  host(target).copy_(host(self));
  return to;
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  int64_t numbers = 1;
  for (auto one : size) numbers *= one;
  auto* impl = self.unsafeGetTensorImpl();
  const auto bytes = static_cast<size_t>((numbers + self.storage_offset()) * self.itemsize());
  if (bytes > self.storage().nbytes()) {
    auto made = allocator.allocate(bytes);
    std::memcpy(made.mutable_get(), self.storage().data(), self.storage().nbytes());
    impl->unsafe_storage().set_data_ptr_noswap(std::move(made));
    impl->unsafe_storage().set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  return self;
}

at::Scalar item(const at::Tensor& self) {
  alive();
  if (!inside) { count("wait: item"); no_capture("item"); }
  return at::_local_scalar_dense(host(self));
}

bool waits(const std::string& name) {  // what asks the device for a number to shape its result
  return name == "aten::nonzero" || name == "aten::masked_select" || name == "aten::_unique2" ||
      name == "aten::unique_dim" || name == "aten::unique_consecutive" || name == "aten::equal";
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  alive();
  const auto& schema = op.schema();
  const std::string name = schema.name();
  const bool pointwise = op.hasTag(at::Tag::pointwise);
  const bool indexed = name == "aten::index" || name == "aten::index_put_" || name == "aten::index_put" ||
      name == "aten::_index_put_impl_" || name == "aten::_unsafe_index";
  launch(name.substr(6));
  if (name == "aten::bincount") { count("wait: bincount"); count("wait: bincount"); no_capture("bincount"); }
  if (waits(name)) { count("wait: " + name.substr(6)); no_capture(name.c_str()); }
  const auto many = schema.arguments().size();
  auto view = [&](const at::Tensor& t, bool index) {
    if (!t.defined() || t.is_cuda()) {
      if (index && t.defined() && (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte)) {
        count("wait: boolean index");
        no_capture("boolean index");
      }
      return;
    }
    if (t.device().is_meta()) return;
    const bool fine = index || (t.dim() == 0 && (pointwise || name == "aten::fill_"));
    TORCH_CHECK(fine, "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and ", t.device(), "! (", name, ", an argument of shape ", t.sizes(), ")");
    if (index && t.dim()) { count("wait: host to device (index)"); no_capture("index from the host"); }
  };
  const auto given = torch::jit::last(*stack, many);
  for (size_t i = 0; i < many; ++i) {
    const auto& value = given[i];
    if (value.isTensor()) view(value.toTensor(), false);
    else if (value.isTensorList()) for (const auto& t : value.toTensorVector()) view(t, indexed);
    else if (value.isOptionalTensorList())
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorList()) if (t) view(*t, indexed);
  }
  Inside here;
  if (name == "aten::native_batch_norm") {  // it writes into arguments without saying so
    auto all = torch::jit::last(*stack, many).vec();
    for (auto& one : all) if (one.isTensor()) one = host(one.toTensor());
    torch::jit::drop(*stack, many);
    for (auto& one : all) stack->push_back(one);
    op.callBoxed(stack);
    auto made = torch::jit::last(*stack, schema.returns().size()).vec();
    torch::jit::drop(*stack, made.size());
    for (auto& one : made) {
      auto there = one.toTensor();
      auto here = empty(there.sizes(), there.scalar_type(), {}, {}, {}, {});
      host(here).copy_(there);
      stack->push_back(here);
    }
    return;
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("_local_scalar_dense", TORCH_FN(item));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  // Else torch would choose a kernel that only builds with CUDA have.
  m.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

struct Registered { Registered() { c10::SetAllocator(DeviceType::CUDA, &allocator, 200); } } registered;

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("counts", [] { std::lock_guard<std::mutex> lock(counting); return counts; });
  m.def("reset", [] { std::lock_guard<std::mutex> lock(counting); counts.clear(); peak = held.load(); });
  m.def("copy_uncounted", [](at::Tensor& to, const at::Tensor& from) { Inside here; copy_(to, from, false); });
  m.def("reset_peak", [] { peak = held.load(); });
  m.def("pause_faults", [] { return std::make_pair(until_no_memory.exchange(-1), until_broken.exchange(-1)); });
  m.def("resume_faults", [](std::pair<int64_t, int64_t> after) { until_no_memory = after.first; until_broken = after.second; });
  m.def("held", [] { return held.load(); });
  m.def("peak", [] { return peak.load(); });
  m.def("set_limit", [](int64_t bytes) { limit = bytes; });
  m.def("get_limit", [] { return limit.load(); });
  m.def("set_capturing", [](bool on) { capturing = on; });
  m.def("set_broken", [](bool on) { broken = on; });
  m.def("set_invalidated", [](bool on) { invalidated = on; });
  m.def("check", [] { alive(); });
  m.def("allocations", [] { return allocations.load(); });
  m.def("launches", [] { return launches.load(); });
  m.def("fail_allocation", [](int64_t after) { until_no_memory = after; });
  m.def("break_at_launch", [](int64_t after) { until_broken = after; });
}
