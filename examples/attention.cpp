// Attention from C++: a plan that is built once and run often, with the guard watching the error of each head.
#include <clary/clary.hpp>
#include <cstdint>
#include <iostream>
#include <random>
#include <vector>

namespace {

constexpr int64_t kHeadsQ = 8, kHeadsKv = 2, kLength = 512, kDim = 64;

std::vector<float> random_numbers(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

int report(const clary::Status& status) {
  std::cerr << status.message() << '\n';
  return 1;
}

}  // namespace

int main() {
  const auto q = random_numbers(kHeadsQ * kLength * kDim, 1);
  const auto k = random_numbers(kHeadsKv * kLength * kDim, 2);
  const auto v = random_numbers(kHeadsKv * kLength * kDim, 3);
  std::vector<float> out(q.size());

  auto context = clary::Context::create({.threads = 2});
  if (!context) return report(context.status());

  const clary::TensorView q_view(q.data(), {1, kHeadsQ, kLength, kDim});
  const clary::TensorView k_view(k.data(), {1, kHeadsKv, kLength, kDim});
  const clary::TensorView v_view(v.data(), {1, kHeadsKv, kLength, kDim});
  const clary::MutableTensorView out_view(out.data(), {1, kHeadsQ, kLength, kDim});

  // One call.
  const auto status =
      clary::attention(q_view, k_view, v_view, out_view,
                       {.causal = clary::Causal::bottom_right(), .precision = clary::Precision::int8}, &*context);
  if (!status) return report(status);

  // The same as a plan: heads that are off by more than 2 % are repeated at a higher precision.
  auto plan = clary::Plan::create(
      q_view, k_view, v_view, out_view,
      {.causal = clary::Causal::bottom_right(), .precision = clary::Precision::int8, .guard = 0.02}, *context);
  if (!plan) return report(plan.status());
  const auto ran = plan->run(q.data(), k.data(), v.data(), out.data());
  if (!ran) return report(ran);
  std::cout << "C++: " << plan->describe() << '\n';
  for (int64_t head = 0; head < kHeadsQ; ++head) {
    const auto info = plan->head(0, head);
    if (!info) return report(info.status());
    if (!(info->last_error <= 0.02)) return 1;
  }
  return 0;
}
