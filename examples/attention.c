/* Attention of 8 query heads over 2 key-value heads from C: once exactly, once in 8 bits, and how far they differ. */
#include <clary/clary.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { kHeadsQ = 8, kHeadsKv = 2, kLength = 512, kDim = 64 };

/* A dense tensor [1, heads, kLength, kDim]; `shape` must outlive the view. */
static clary_tensor view(float* data, const int64_t* shape) {
  clary_tensor tensor = {0};
  tensor.data = data;
  tensor.device_type = 1;
  tensor.ndim = 4;
  tensor.dtype_code = 2; /* float */
  tensor.dtype_bits = 32;
  tensor.dtype_lanes = 1;
  tensor.shape = shape;
  return tensor;
}

/* Numbers between -1.7 and 1.7 with variance 1, the same on every machine. */
static float* random_numbers(size_t count, unsigned seed) {
  float* numbers = malloc(count * sizeof(float));
  if (numbers == NULL) exit(2);
  for (size_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    numbers[i] = ((float)(seed >> 8) / 8388608.0f - 1.0f) * 1.7320508f;
  }
  return numbers;
}

static int attend(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v, const clary_tensor* out,
                  clary_precision precision, clary_context* context) {
  clary_attention_params params;
  clary_attention_params_init(&params);
  params.causal = CLARY_CAUSAL_BOTTOM_RIGHT;
  params.precision = precision;
  if (clary_attention(q, k, v, out, NULL, &params, context) == CLARY_OK) return 0;
  fprintf(stderr, "clary_attention: %s\n", clary_last_error());
  return 1;
}

int main(void) {
  const int64_t shape_q[4] = {1, kHeadsQ, kLength, kDim};
  const int64_t shape_kv[4] = {1, kHeadsKv, kLength, kDim};
  const size_t count_q = (size_t)kHeadsQ * kLength * kDim;
  const size_t count_kv = (size_t)kHeadsKv * kLength * kDim;
  float* q = random_numbers(count_q, 1);
  float* k = random_numbers(count_kv, 2);
  float* v = random_numbers(count_kv, 3);
  float* exact = random_numbers(count_q, 4);
  float* int8 = random_numbers(count_q, 5);

  clary_context* context = NULL;
  if (clary_context_create(NULL, &context) != CLARY_OK) {
    fprintf(stderr, "clary_context_create: %s\n", clary_last_error());
    return 1;
  }
  const clary_tensor q_view = view(q, shape_q), k_view = view(k, shape_kv), v_view = view(v, shape_kv);
  const clary_tensor exact_view = view(exact, shape_q), int8_view = view(int8, shape_q);
  if (attend(&q_view, &k_view, &v_view, &exact_view, CLARY_EXACT, context) != 0) return 1;
  if (attend(&q_view, &k_view, &v_view, &int8_view, CLARY_INT8, context) != 0) return 1;

  double difference = 0, norm = 0;
  for (size_t i = 0; i < count_q; i++) {
    difference += pow((double)int8[i] - exact[i], 2);
    norm += pow(exact[i], 2);
  }
  const double error = sqrt(difference / norm);
  printf("C: Clary %s on %s, int8 differs from exact by %.2f %%\n", clary_version(), clary_context_isa(context),
         100 * error);
  clary_context_destroy(context);
  free(q), free(k), free(v), free(exact), free(int8);
  return error > 0 && error < 0.03 ? 0 : 1;
}
