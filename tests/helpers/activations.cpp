// Every activation of csrc/cpu/activate.h on numbers from standard input, with one instruction set.
//
// activations DTYPE LOWER_SLOPE < numbers: for each activation in turn the values, the slopes, and both once more as
// both<A>() gives them. Then, of the same numbers, exp. As many numbers as fill whole vectors.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/cpu/activate.h"

namespace film::FILM_ISA {

template <class A, class Function>
void print(const std::vector<A>& numbers, const Function& function) {
  std::vector<A> results(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); i += kLanes<A>) store<A>(&results[i], function(load<A>(&numbers[i])));
  std::fwrite(results.data(), sizeof(A), results.size(), stdout);
}

template <class A>
void print_all(double lower_slope) {
  std::vector<A> numbers;
  for (A number; std::fread(&number, sizeof number, 1, stdin) == 1;) numbers.push_back(number);
  if (numbers.size() % kLanes<A> != 0) std::exit(2);
  for (int code = 0; code <= kLastActivation; ++code)
    with_activation(static_cast<Activation>(code), lower_slope, [&](auto act) {
      print<A>(numbers, [&](Vector<A> v) { return act.template value<A>(v); });
      print<A>(numbers, [&](Vector<A> v) { return act.template slope<A>(v); });
      print<A>(numbers, [&](Vector<A> v) { return act.template both<A>(v).value; });
      print<A>(numbers, [&](Vector<A> v) { return act.template both<A>(v).slope; });
    });
  print<A>(numbers, [](Vector<A> v) { return exponential<A>(v); });
}

}  // namespace film::FILM_ISA

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const double lower_slope = std::atof(argv[2]);
  if (std::strcmp(argv[1], "float32") == 0) {
    film::FILM_ISA::print_all<float>(lower_slope);
  } else {
    film::FILM_ISA::print_all<double>(lower_slope);
  }
}
