// Normalisation of the channels of each position, which lie side by side: a row is those of one position, and has its
// statistics.
#include "norm_across.h"
#include "norm_kernels.h"
#include "norm_moments.h"
#include "norm_parts.h"
#include "norm_sums.h"

namespace film::FILM_ISA {
namespace {

constexpr Along kAlong{false, true};

}  // namespace

template <class A>
void forward_across_pixels(const NormProblem& p, const NormForwardArgs& args) {
  const Parts parts(p);
  const FactorTable<A> table(p, args.by);
  const Affine<A> affine(p, table, false);
  const Kept<A> kept(p, args.statistics);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kAlong, p.position);
  const int64_t C = p.channels, most = block_rows(C);

  share(p.batch * parts.of_sample, p.elements(), [&](int64_t begin, int64_t end) {
    const PartWorker<A> worker(most, C);
    const Scratch<A> mean(most), rstd(most);
    std::fill_n(static_cast<A*>(mean), most, A(0));
    for (int64_t i = begin; i < end; ++i)
      parts.part(i).in_blocks(C, [&](const Part& some) {
        const Rows<const A> x = widened<A>(parts.stored(args.input, some), p.dtype, some.rows, C, worker.x);
        for (int64_t r = 0; r < some.rows; ++r) {
          const int64_t at = some.n * p.positions + some.first + r;
          double second;
          if (p.takes_mean()) {
            const Moments moments = moments_of<A>(1, C, {x.row(r), C});
            kept.mean[at] = mean[r] = static_cast<A>(moments.mean);
            second = moments.squares / moments.count;
          } else {
            const double squares = squares_of<A>(C, x.row(r));
            second = p.norm == Norm::rms ? squares / C : std::sqrt(squares);
          }
          kept.second[at] = static_cast<A>(second);
          rstd[r] = static_cast<A>(rstd_of(p, second));
        }
        const StoredRows to = parts.stored(args.output, some);
        const Rows<A> y = target<A>(to, p.dtype, C, worker.out);
        modulate({some.rows, C, x, affine.with(some.n, 0, mean, rstd)}, p.lower_slope, y, soon(to, p.dtype));
        narrow_rows(to, p.dtype, some.rows, C, y);
      });
  });
}

template <class A>
void backward_across_pixels(const NormProblem& p, const NormBackwardArgs& args) {
  const Parts parts(p);
  const FactorTable<A> table(p, args.by);
  const Affine<A> affine(p, table, true);
  const Kept<A> kept(p, const_cast<void*>(args.statistics));
  const SumKinds kinds(p, args);
  ChannelSums sums(p, parts.of_sample, true, kinds.count());
  const Slope<A> slope = slope_of<A>(p.activation, kAlong, kinds.post);
  const bool linear = p.activation == Activation::none && !kinds.post;  // then d is the gradient itself
  const int64_t C = p.channels, most = block_rows(C);

  share(p.batch * parts.of_sample, p.elements(), [&](int64_t begin, int64_t end) {
    const PartWorker<A> worker(most, C);
    const Scratch<A> mean(most), rstd(most), constant(most), slope_of_xhat(most);
    std::vector<double> all(most), along(most);
    std::fill_n(static_cast<A*>(mean), most, A(0));
    for (int64_t i = begin; i < end; ++i) {
      const auto move = [&] {
        for (int k = 0; k < kinds.count(); ++k) move_sums(C, worker.sum(k), sums.of_part(i, k));
      };
      const auto differentiate = [&](const Part& some) {
        const int64_t first = some.n * p.positions + some.first;
        for (int64_t r = 0; r < some.rows; ++r) {
          if (p.takes_mean()) mean[r] = kept.mean[first + r];
          rstd[r] = static_cast<A>(rstd_of(p, kept.second[first + r]));
        }
        const RowPass<A> pass{some.rows, C, widened<A>(parts.stored(args.input, some), p.dtype, some.rows, C, worker.x),
                              affine.with(some.n, 0, mean, rstd)};
        const Rows<const A> grad = widened<A>(parts.stored(args.grad, some), p.dtype, some.rows, C, worker.grad);
        const Rows<const A> d = linear ? grad : Rows<const A>{worker.d, C};
        if (!linear) slope(pass, p.lower_slope, grad, {worker.d, C}, {worker.product, C}, nullptr);
        std::fill_n(all.data(), most, 0);
        std::fill_n(along.data(), most, 0);
        sum_backward<A, false, true>(pass, d, affine.of_z(some.n, 0),
                                     {worker.sum(0), worker.sum(1), kinds.of_z ? worker.sum(2) : nullptr,
                                      affine.weight(some.n, 0), all.data(), along.data()});
        if (kinds.post) {
          add_columns<A, false>(some.rows, C, grad, worker.sum(2));
          add_columns<A, false>(some.rows, C, {worker.product, C}, worker.sum(3));
        }
        if (args.grad_input.data == nullptr) return;
        for (int64_t r = 0; r < some.rows; ++r)
          set_terms<A>(p, kept.second[first + r], rstd[r], all[r], along[r], constant + r, slope_of_xhat + r);
        const StoredRows to = parts.stored(args.grad_input, some);
        const Rows<A> dx = target<A>(to, p.dtype, C, worker.out);
        grad_input_rows<A, false, true>(pass, d, {affine.weight_of_dx(p, some.n, 0), constant, slope_of_xhat}, dx);
        narrow_rows(to, p.dtype, some.rows, C, dx);
      };
      parts.part(i).in_chains(C, differentiate, move);
    }
  });
  share(p.batch, p.elements(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) sums.add_up(n);
  });
  finish_factors(p, args, table, sums.all());
}

template void forward_across_pixels<float>(const NormProblem&, const NormForwardArgs&);
template void forward_across_pixels<double>(const NormProblem&, const NormForwardArgs&);
template void backward_across_pixels<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_across_pixels<double>(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
