// A small well-formed call of the C interface, to be spoiled part by part, and a look at the words of a message.
#pragma once

#include <gtest/gtest.h>

#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "support/harness.h"

namespace clary::test {

// A well-formed call whose parts a test spoils one at a time.
struct Call {
  Call() : problem(support::parse_problem("b2 hq4 hkv2 lq6 lk9 d8 int8")), tensors(make_tensors(problem)) {
    q = *tensors.q.view(), k = *tensors.k.view(), v = *tensors.v.view(), out = *tensors.out.view(),
    lse = *tensors.lse.view();
    params = make_params(problem, tensors);
    for (auto* pair : {&q_shape, &k_shape, &v_shape, &out_shape, &lse_shape}) pair->reserve(5);
    q_shape = tensors.q.shape(), k_shape = tensors.k.shape(), v_shape = tensors.v.shape();
    out_shape = tensors.out.shape(), lse_shape = tensors.lse.shape();
    q.shape = q_shape.data(), k.shape = k_shape.data(), v.shape = v_shape.data();
    out.shape = out_shape.data(), lse.shape = lse_shape.data();
    q.strides = k.strides = v.strides = out.strides = lse.strides = nullptr;
  }

  // Attaches a tensor of the caller's making as the mask (resp. slopes, sinks).
  const clary_tensor* keep(Tensor tensor) {
    extra = std::move(tensor);
    return extra.view();
  }

  void make_varlen() {
    q_shape = {1, 4, 12, 8}, out_shape = {1, 4, 12, 8}, k_shape = {1, 2, 18, 8}, v_shape = {1, 2, 18, 8},
    lse_shape = {1, 4, 12};
    params.cu_seqlens_q = cu_q;
    params.cu_seqlens_k = cu_k;
    params.num_sequences = 2;
  }

  clary_status run() {
    return clary_attention(q_or_null, k_or_null, v_or_null, out_or_null, lse_or_null, &params,
                           shared_context("scalar"));
  }

  clary_status plan() {
    clary_plan* made = nullptr;
    const clary_status status = clary_plan_create(q_or_null, k_or_null, v_or_null, out_or_null, lse_or_null, &params,
                                                  shared_context("scalar"), &made);
    EXPECT_EQ(status == CLARY_OK, made != nullptr);
    clary_plan_destroy(made);
    return status;
  }

  Problem problem;
  Tensors tensors;
  Tensor extra;
  clary_tensor q, k, v, out, lse;
  std::vector<int64_t> q_shape, k_shape, v_shape, out_shape, lse_shape, strides;
  const clary_tensor *q_or_null = &q, *k_or_null = &k, *v_or_null = &v, *out_or_null = &out, *lse_or_null = &lse;
  clary_attention_params params;
  int32_t cu_q[3] = {0, 5, 12}, cu_k[3] = {0, 9, 18};
};

inline bool has_word(const std::string& text, const std::string& word) {
  const std::string quoted = std::regex_replace(word, std::regex(R"([-.\[\](){}*+?^$|\\])"), R"(\$&)");
  return std::regex_search(text, std::regex("(^|[^A-Za-z0-9_])" + quoted + "($|[^A-Za-z0-9_])"));
}

}  // namespace clary::test
