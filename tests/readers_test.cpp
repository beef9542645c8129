// The readers of .npy and .safetensors: what is right is read exactly, what is wrong is refused with its place.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>

#include "support/npy.h"
#include "support/safetensors.h"

namespace clary::support {
namespace {

Source source_of(const std::string& bytes) { return {std::as_bytes(std::span(bytes)), "test"}; }

std::string little_endian(uint64_t value, int bytes) {
  std::string result;
  for (int i = 0; i < bytes; ++i) result.push_back(static_cast<char>(value >> (8 * i) & 255));
  return result;
}

std::string npy(const std::string& header, const std::string& data, int version = 1) {
  std::string lead = "\x93NUMPY";
  lead += {static_cast<char>(version), '\0'};
  return lead + little_endian(header.size(), version == 1 ? 2 : 4) + header + data;
}

std::string npy_shape(const std::string& shape, const std::string& data, const std::string& descr = "<f4") {
  return npy("{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }\n", data);
}

std::string safetensors(const std::string& header, const std::string& data) {
  return little_endian(header.size(), 8) + header + data;
}

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Expects a FileError that speaks of `reason`, at byte `offset` (-1: anywhere within the file).
void expect_refused(const std::string& bytes, const std::function<void(const Source&)>& read, const std::string& reason,
                    int64_t offset) {
  try {
    read(source_of(bytes));
    ADD_FAILURE() << "accepted, although: " << reason;
  } catch (const FileError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find(reason), text.npos) << "the message is: " << text;
    EXPECT_NE(text.find("(at byte " + std::to_string(error.offset()) + ")"), text.npos) << text;
    EXPECT_LE(error.offset(), bytes.size()) << text;
    if (offset >= 0) {
      EXPECT_EQ(error.offset(), static_cast<uint64_t>(offset)) << text;
    }
  }
}

void expect_bad_npy(const std::string& bytes, const std::string& reason, int64_t offset = -1) {
  expect_refused(
      bytes, [](const Source& source) { read_npy(source); }, reason, offset);
}

void read_all(std::string bytes) {
  const Safetensors file(source_of(bytes));
  for (const auto& entry : file.entries()) file.load(entry);
}

void expect_bad_safetensors(const std::string& bytes, const std::string& reason, int64_t offset = -1) {
  expect_refused(
      bytes, [&](const Source&) { read_all(bytes); }, reason, offset);
}

// ---- .npy ----------------------------------------------------------------------------------------------------------

TEST(Npy, ReadsEveryVersion) {
  for (const int version : {1, 2, 3}) {
    const std::string bytes = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n",
                                  floats({0, 1, 2, 3, 4, -5.5f}), version);
    const Tensor tensor = read_npy(source_of(bytes));
    EXPECT_EQ(tensor.dtype(), "f32");
    EXPECT_EQ(tensor.shape(), (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(tensor.at(0, 0, 1, 2), -5.5);
    EXPECT_EQ(tensor.at(0, 0, 0, 1), 1);
  }
}

TEST(Npy, ReadsTypesAndShapes) {
  const Tensor half = read_npy(source_of(npy_shape("(2,)", std::string("\x00\x3c\x00\xc0", 4), "<f2")));
  EXPECT_EQ(half.dtype(), "f16");
  EXPECT_EQ(half.at(0, 0, 0, 0), 1);
  EXPECT_EQ(half.at(0, 0, 0, 1), -2);
  for (const char* const descr : {"|b1", "|u1"}) {
    const Tensor mask = read_npy(source_of(npy_shape("(3,)", std::string("\x01\x00\x02", 3), descr)));
    EXPECT_EQ(mask.dtype(), "bool");
    EXPECT_EQ(mask.at(0, 0, 0, 1), 0);
    EXPECT_NE(mask.at(0, 0, 0, 2), 0);
  }
  EXPECT_EQ(read_npy(source_of(npy_shape("()", floats({7})))).shape().size(), 0u);
  EXPECT_EQ(read_npy(source_of(npy_shape("(0, 5)", ""))).shape(), (std::vector<int64_t>{0, 5}));
  EXPECT_EQ(read_npy(source_of(npy_shape("(2L, 1L)", floats({7, 8})))).shape(), (std::vector<int64_t>{2, 1}));
  const std::string other_order = "{\"shape\":(1,),\"descr\":\"<f4\",\"fortran_order\":False}";
  EXPECT_EQ(read_npy(source_of(npy(other_order, floats({9})))).at(0, 0, 0, 0), 9);
}

TEST(Npy, RoundTripsThroughAFile) {
  const std::string path = testing::TempDir() + "clary_round_trip.npy";
  for (const char* const dtype : {"f32", "f16", "bool"}) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{2, 3, 5, 7}, {4}, {}, {3, 0}}) {
      Tensor written(dtype, shape);
      if (shape.size() == 4)
        for (int64_t i = 0; i < 210; ++i)
          written.set(i / 105, i / 35 % 3, i / 7 % 5, i % 7, static_cast<double>(i % 11) - 5);
      write_npy(path, written);
      const Tensor read = read_npy(path);
      EXPECT_EQ(read.dtype(), dtype);
      EXPECT_EQ(read.shape(), shape);
      const size_t bytes = shape.size() == 4 ? 210 * (written.view()->dtype_bits / 8u) : 0;
      EXPECT_EQ(std::string_view(static_cast<const char*>(read.data()), bytes),
                std::string_view(static_cast<const char*>(written.data()), bytes));
    }
  }
  std::remove(path.c_str());
  EXPECT_THROW(write_npy(path, Tensor("bf16", {1})), std::runtime_error);
  EXPECT_THROW(write_npy("/no/such/folder/x.npy", Tensor("f32", {1})), std::runtime_error);
}

TEST(Npy, RefusesWrongFrames) {
  const std::string good = npy_shape("(2,)", floats({1, 2}));
  expect_bad_npy("", "10 bytes expected, 0 there", 0);
  expect_bad_npy(good.substr(0, 9), "10 bytes expected, 9 there", 0);
  expect_bad_npy("PK\x03\x04" + good, "not a .npy file", 0);
  std::string version = good;
  version[6] = 4;
  expect_bad_npy(version, "format version 4.0", 6);
  expect_bad_npy(good.substr(0, 20), "header of", 8);
  expect_bad_npy(npy("{'descr': '<f4'}", "", 2).replace(8, 4, "\xff\xff\xff\xff"), "header of 4294967295 bytes", 8);
  expect_bad_npy(npy(std::string(70000, ' '), "", 2), "at most 65536", 8);
  expect_bad_npy(good.substr(0, good.size() - 1), "needs 8 bytes of data, 7 are there",
                 static_cast<int64_t>(good.size()) - 1);
  expect_bad_npy(good + "xyz", "3 bytes after the data", static_cast<int64_t>(good.size()));
}

TEST(Npy, RefusesWrongHeaders) {
  const auto header = [](const std::string& text) { return npy(text, floats({1, 2})); };
  expect_bad_npy(header(""), "'{' expected", 10);
  expect_bad_npy(header("{'descr': '<f4', 'fortran_order': False}"), "no 'shape'");
  expect_bad_npy(header("{'descr': '<f4', 'shape': (2,)}"), "no 'fortran_order'");
  expect_bad_npy(header("{'fortran_order': False, 'shape': (2,)}"), "no 'descr'");
  expect_bad_npy(header("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"),
                 "repeated key 'descr'", 27);
  expect_bad_npy(header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}"), "unknown key 'x'", 66);
  expect_bad_npy(header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x"),
                 "after the header's closing brace", 66);
  expect_bad_npy(header("{'descr': '<f4', 'fortran_order': None, 'shape': (2,)}"), "True or False expected", 44);
  expect_bad_npy(header("{'descr': '<f4"), "does not end", 20);
  expect_bad_npy(header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"), "structured", 20);
  expect_bad_npy(header("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1)}"), "Fortran order", 44);
  expect_bad_npy(header("{'descr': '\xff\x1b[2J', 'fortran_order': False, 'shape': (2,)}"),
                 "type '??[2J' is not supported", 20);
}

TEST(Npy, RefusesWrongTypesAndShapes) {
  const std::string two = floats({1, 2});
  expect_bad_npy(npy_shape("(1,)", two, "<f8"), "type '<f8' is not supported", 20);
  expect_bad_npy(npy_shape("(2,)", two, ">f4"), "big-endian", 20);
  expect_bad_npy(npy_shape("(4,)", two, "|V2"), "no bfloat16", 20);
  expect_bad_npy(npy_shape("(-2,)", two), "negative dimension", 61);
  expect_bad_npy(npy_shape("(2)", two), "not a tuple", 63);
  expect_bad_npy(npy_shape("(2 1)", two), "',' or ')' expected", 63);
  expect_bad_npy(npy_shape("(NaN,)", two), "a number expected", 61);
  expect_bad_npy(npy_shape("(1e9,)", two), "',' or ')' expected", 62);
  expect_bad_npy(npy_shape("(99999999999999999999,)", two), "exceeds 63 bits");
  expect_bad_npy(npy_shape("(4611686018427387904, 2)", two), "exceeds 2^62", 60);
  expect_bad_npy(npy_shape("(4294967296, 4294967296)", two), "exceeds 2^62", 60);
  expect_bad_npy(npy_shape("(0, 4611686018427387904, 8)", ""), "exceeds 2^62", 60);
  expect_bad_npy(npy_shape("(1000000000000,)", two), "needs 4000000000000 bytes");  // refused before it is allocated
  std::string many = "(";
  for (int i = 0; i < 33; ++i) many += "1,";
  expect_bad_npy(npy_shape(many + ")", floats({1})), "more than 32 dimensions");
}

TEST(Npy, EveryTruncationIsRefused) {
  const std::string good = npy_shape("(1, 2, 1)", floats({1, 2}));
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_THROW(read_npy(source_of(good.substr(0, length))), FileError) << length;
  EXPECT_NO_THROW(read_npy(source_of(good)));  // the check itself can pass
}

// ---- .safetensors --------------------------------------------------------------------------------------------------

const char* const kTwo = R"({"__metadata__":{"layout":"bhsd"},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},)"
                         R"("a":{"shape":[2,1],"data_offsets":[0,4],"dtype":"BF16"}}   )";

TEST(SafetensorsFile, ReadsTensorsAndMetadata) {
  const std::string bytes = safetensors(kTwo, std::string("\x80\x3f\x00\xc0", 4) + floats({3, 4.5f}));
  const Safetensors file(source_of(bytes));
  ASSERT_EQ(file.entries().size(), 2u);
  EXPECT_EQ(file.entries()[0].name, "a");
  EXPECT_EQ(file.metadata().at("layout"), "bhsd");
  EXPECT_EQ(file.find("c"), nullptr);
  const Tensor a = file.load(*file.find("a")), b = file.load(*file.find("b"));
  EXPECT_EQ(a.dtype(), "bf16");
  EXPECT_EQ(a.shape(), (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(a.at(0, 0, 0, 0), 1);
  EXPECT_EQ(a.at(0, 0, 1, 0), -2);
  EXPECT_EQ(b.at(0, 0, 0, 1), 4.5);
  EXPECT_TRUE(Safetensors(source_of(safetensors("{}", ""))).entries().empty());
}

TEST(SafetensorsFile, ReadsTheExampleData) {
  const Safetensors file(std::string(CLARY_SOURCE_DIR) + "/examples/data/minilm_qkv.safetensors");
  EXPECT_EQ(file.entries().size(), 6u);
  const Tensor k = file.load(*file.find("layer4.k"));
  EXPECT_EQ(k.dtype(), "f16");
  EXPECT_EQ(k.shape(), (std::vector<int64_t>{1, 12, 512, 32}));
  EXPECT_TRUE(std::isfinite(k.at(0, 11, 511, 31)));
}

TEST(SafetensorsFile, OtherTypesArePresentButNotLoaded) {
  const std::string bytes =
      safetensors(R"({"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})", std::string(8, '\0'));
  EXPECT_EQ(Safetensors(source_of(bytes)).entries().size(), 1u);
  expect_bad_safetensors(bytes, "dtype I64 is not supported", static_cast<int64_t>(bytes.size()) - 8);
}

TEST(SafetensorsFile, RefusesWrongFrames) {
  expect_bad_safetensors("", "8 bytes expected, 0 there", 0);
  expect_bad_safetensors("1234567", "8 bytes expected, 7 there", 0);
  expect_bad_safetensors(little_endian(3, 8) + "{}", "header of 3 bytes, but only 2 follow", 0);
  expect_bad_safetensors(std::string(8, '\xff') + "{}", "header of 18446744073709551615 bytes", 0);
  expect_bad_safetensors(safetensors("", ""), "does not begin with '{'", 8);
  expect_bad_safetensors(safetensors(" {}", ""), "does not begin with '{'", 8);
  expect_bad_safetensors(safetensors("{}", "xyz"), "3 bytes after the data", 10);
  EXPECT_THROW(Safetensors("/no/such/file"), std::runtime_error);
  EXPECT_THROW(Safetensors("/dev/zero"), std::runtime_error);
}

TEST(SafetensorsFile, RefusesWrongJson) {
  const auto bad = [](const std::string& header, const std::string& reason, int64_t offset = -1) {
    expect_bad_safetensors(safetensors(header, std::string(8, '\0')), reason, offset);
  };
  bad("{\"a\":", "syntax error", 13);
  bad("{\"a\":NaN}", "invalid literal");
  bad("{\"\xff\":{}}", "UTF-8");
  bad("{} {}", "syntax error");
  bad("{\"a\":1}", "a number where the object of one tensor belongs");
  bad("{\"a\":null}", "null where the object of one tensor belongs");
  bad("{\"a\":" + std::string(100000, '['), "an array where the object of one tensor belongs", 13);
  std::string objects = "{";
  for (int i = 0; i < 10000; ++i) objects += "\"a\":{";
  bad(objects, "unknown key 'a'");
  bad(R"({"__metadata__":{"a":{}}})", "an object where a metadata string belongs");
  bad(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,8]}})", "a number that is no 64-bit integer");
  bad(R"({"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,8]}})", "number overflow");
  bad(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "a negative number", 8 + 31);  // the byte after it
  bad(R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", "exceeds 63 bits");
  bad(R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", "an array where");
  bad(R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", "a number where");
  bad(R"({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})", "unknown dtype 'F99'");
  bad(R"({"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}})", "an array where a dtype belongs");
  bad(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", "unknown key 'x'");
  bad(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", "tensor 'a' has no shape");
  bad(R"({"a":{"dtype":"F32","shape":[2]}})", "tensor 'a' has no data_offsets");
  bad(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "repeated key 'dtype'");
  bad(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}})", "repeated key 'a'");
}

TEST(SafetensorsFile, RefusesWrongOffsets) {
  const auto bad = [](const std::string& first, const std::string& second, const std::string& reason) {
    const auto entry = [](const char* name, const std::string& text) {
      return std::string("\"") + name + "\":{\"dtype\":\"F32\"," + text + "}";
    };
    const std::string header = "{" + entry("a", first) + (second.empty() ? "" : "," + entry("b", second)) + "}";
    expect_bad_safetensors(safetensors(header, std::string(8, '\0')), reason);
  };
  bad(R"("shape":[2],"data_offsets":[0,8,9])", "", "more than two data_offsets");
  bad(R"("shape":[2],"data_offsets":[0])", "", "data_offsets needs two numbers");
  bad(R"("shape":[2],"data_offsets":[8,0])", "", "data_offsets [8, 0] in 8 bytes of data");
  bad(R"("shape":[3],"data_offsets":[0,12])", "", "data_offsets [0, 12] in 8 bytes of data");
  bad(R"("shape":[2],"data_offsets":[0,9223372036854775807])", "", "in 8 bytes of data");
  bad(R"("shape":[3],"data_offsets":[0,8])", "", "8 bytes of data, but its shape and dtype need 12");
  bad(R"("shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,8])", "", "exceeds 2^62");
  bad(R"("shape":[0,9223372036854775807],"data_offsets":[0,0])", "", "exceeds 2^62");
  bad(R"("shape":[2],"data_offsets":[0,8])", R"("shape":[1],"data_offsets":[4,8])", "overlap");
  bad(R"("shape":[2],"data_offsets":[0,8])", R"("shape":[2],"data_offsets":[0,8])", "overlap");
  bad(R"("shape":[1],"data_offsets":[4,8])", "", "a gap follows");
  bad(R"("shape":[1],"data_offsets":[0,4])", "", "4 bytes after the data");
}

TEST(SafetensorsFile, EveryTruncationIsRefused) {
  const std::string good = safetensors(kTwo, std::string(12, '\0'));
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_THROW(read_all(good.substr(0, length)), FileError) << length;
  EXPECT_NO_THROW(read_all(good));
}

// The check of refusals must itself fail on a file that is right.
TEST(Readers, ARightFileIsNotRefused) {
  testing::TestPartResultArray failures;
  {
    testing::ScopedFakeTestPartResultReporter reporter(
        testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &failures);
    expect_bad_npy(npy_shape("(1,)", floats({1})), "anything");
    expect_bad_safetensors(safetensors("{}", ""), "anything");
  }
  EXPECT_EQ(failures.size(), 2);
}

}  // namespace
}  // namespace clary::support
