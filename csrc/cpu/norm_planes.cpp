// Normalisation of groups of planes: a row is the positions of one channel of one sample, and a group, which has its
// statistics in common, is some rows of a sample ("group") or those of a channel in all samples ("batch").
#include "norm_factors.h"
#include "norm_kernels.h"
#include "norm_schedule.h"
#include "norm_sums.h"

namespace film::FILM_ISA {
namespace {

// Some columns of some rows of a group.
struct Block {
  int64_t row, rows, column, columns;
};

// Groups of rows, cut into blocks: of whole rows, or of a part of one.
struct Groups {
  int64_t batch, channels, count, rows, columns, block_rows, block_columns;
  bool of_batch;

  explicit Groups(const NormProblem& p)
      : batch(p.batch),
        channels(p.channels),
        count(p.norm == Norm::batch   ? p.channels
              : p.norm == Norm::group ? p.batch * p.groups
                                      : p.batch),
        rows(p.batch * p.channels / count),
        columns(p.positions),
        block_rows(std::max<int64_t>(kBlock / p.positions, 1)),
        block_columns(std::min(kBlock, p.positions)),
        of_batch(p.norm == Norm::batch) {}

  int64_t chunks() const { return (columns + block_columns - 1) / block_columns; }  // of a row
  int64_t blocks() const { return (rows + block_rows - 1) / block_rows * chunks(); }
  Block block(int64_t b) const {
    const int64_t row = b / chunks() * block_rows, column = b % chunks() * block_columns;
    return {row, std::min(block_rows, rows - row), column, std::min(block_columns, columns - column)};
  }
  // Rows are numbered through the groups: so stand the numbers of channels of samples, too.
  int64_t number(int64_t group, int64_t row) const { return group * rows + row; }
  Shares shares() const { return {count, blocks(), batch * channels * columns}; }

  // Where a thread goes on to after a group.
  int64_t after(int64_t group) const { return std::min(group + 1, count - 1); }

  StoredRows stored(const Cube& cube, int64_t group, const Block& b) const {
    const int64_t at = number(group, b.row);
    const int64_t first =
        of_batch ? at % batch * cube.n + at / batch * cube.c : at / channels * cube.n + at % channels * cube.c;
    return {cube.data, first + b.column, of_batch ? cube.n : cube.c};
  }
};

// What a thread works in: blocks.
template <class A>
struct Worker {
  Scratch<A> x{kBlock}, out{kBlock};
};

// The factors of all rows of a group.
template <class A>
void set_factors(const AffineTable<A>& factors, const Groups& groups, int64_t group, double mean, double rstd) {
  const Standing by{&mean, &rstd};
  const int64_t first = groups.number(group, 0);
  if (groups.of_batch)
    factors.template set<false, false>(first, groups.rows, group, by);
  else
    factors.template set<true, false>(first, groups.rows, first % groups.channels, by);
}

constexpr Along kAlong{false, false};

}  // namespace

template <class A>
void forward_of_planes(const NormProblem& p, const NormForwardArgs& args) {
  const Groups groups(p);
  const FactorTable<A> table(p, args.by, groups.of_batch);
  const AffineTable<A> factors(p, table, false);
  const Modulate<A> modulate = modulate_of<A>(p.activation, kAlong, p.position);
  const int64_t blocks = groups.blocks();
  std::vector<Moments> moments(p.norm == Norm::none ? 0 : groups.count * blocks);
  A* statistics = static_cast<A*>(args.statistics);

  const auto read = [&](int64_t group, const Block& b, const Worker<A>& worker) {
    return widened<A>(groups.stored(args.input, group, b), p.dtype, b.rows, b.columns, worker.x);
  };
  const auto measure = [&](int64_t group, int64_t block, const Worker<A>& worker) {
    if (p.norm == Norm::none) return;
    const Block b = groups.block(block);
    moments[group * blocks + block] = moments_of<A>(b.rows, b.columns, read(group, b, worker));
  };
  const auto finish = [&](int64_t group) {
    if (p.norm == Norm::none) return set_factors(factors, groups, group, 0, 1);
    Moments all;
    for (int64_t b = 0; b < blocks; ++b) all.add(moments[group * blocks + b]);
    const double variance = all.squares / all.count;
    statistics[group] = static_cast<A>(all.mean), statistics[groups.count + group] = static_cast<A>(variance);
    set_factors(factors, groups, group, all.mean, rstd_of(p, variance));
  };
  const auto apply = [&](int64_t group, int64_t block, const Worker<A>& worker) {
    const Block b = groups.block(block);
    const StoredRows to = groups.stored(args.output, group, b);
    const Rows<A> y = target<A>(to, p.dtype, b.columns, worker.out);
    modulate({b.rows, b.columns, read(group, b, worker), factors.from(groups.number(group, b.row))}, p.lower_slope, y,
             soon(groups.stored(args.input, groups.after(group), b), p.dtype));
    narrow_rows(to, p.dtype, b.rows, b.columns, y);
  };
  in_stages(groups.shares(), [] { return Worker<A>(); }, [](int64_t) {}, measure, finish, apply);
}

namespace {

// What backward sums: of each part of a row that a block has, and of all of the row. Of up to four kinds.
struct Sums {
  int64_t rows, chunks, kinds;
  Scratch<double> of_parts, of_rows;

  Sums(int64_t rows, int64_t chunks, int64_t kinds)
      : rows(rows), chunks(chunks), kinds(kinds), of_parts(kinds * rows * chunks), of_rows(4 * rows) {}
  double* part(int64_t kind, int64_t row) const { return of_parts + (kind * rows + row) * chunks; }
  double* row(int64_t kind, int64_t row) const { return of_rows + kind * rows + row; }

  void clear(int64_t first, int64_t count) const {
    for (int64_t kind = 0; kind < kinds; ++kind) std::fill_n(part(kind, first), count * chunks, 0.0);
  }
  // Adds up the parts of rows, in order.
  void add_up(int64_t first, int64_t count) const {
    for (int64_t kind = 0; kind < kinds; ++kind) {
      const double* from = part(kind, first);
      double* to = row(kind, first);
      for (int64_t i = 0; i < count; ++i) {
        double sum = from[i * chunks];
        for (int64_t k = 1; k < chunks; ++k) sum += from[i * chunks + k];
        to[i] = sum;
      }
    }
  }
};

template <class A>
struct BackwardWorker {
  Scratch<A> x{kBlock}, grad{kBlock}, d{kBlock}, product{kBlock}, out{kBlock};
  Scratch<A> kept;  // d of a whole group, where that fits the cache

  explicit BackwardWorker(int64_t elements_kept) : kept(elements_kept) {}
};

}  // namespace

template <class A>
void backward_of_planes(const NormProblem& p, const NormBackwardArgs& args) {
  const Groups groups(p);
  const FactorTable<A> table(p, args.by, groups.of_batch);
  const AffineTable<A> factors(p, table, true);
  const int64_t rows = p.batch * p.channels;
  const Scratch<A> constant(rows), slope_of_xhat(rows);  // of dx
  const SumKinds kinds(p, args);
  const bool normalises = p.norm != Norm::none, dx_wanted = args.grad_input.data != nullptr;
  const bool sums_wanted = args.sums_wanted() || normalises;
  const Sums sums(rows, groups.chunks(), sums_wanted ? kinds.count() : 0);
  const Slope<A> slope = slope_of<A>(p.activation, kAlong, kinds.post);
  const A* statistics = static_cast<const A*>(args.statistics);
  const int64_t size = groups.rows * groups.columns;  // of a group

  const auto rstd_in = [&](int64_t group) { return normalises ? rstd_of(p, statistics[groups.count + group]) : 1; };
  const auto prepare = [&](int64_t group) {
    const int64_t first = groups.number(group, 0);
    set_factors(factors, groups, group, normalises ? statistics[group] : 0, rstd_in(group));
    sums.clear(first, groups.rows);
    std::fill_n(constant + first, groups.rows, A(0));
    std::fill_n(slope_of_xhat + first, groups.rows, A(0));
  };
  // d of a block, and what it was made from.
  const auto differentiate = [&](int64_t group, const Block& b, const BackwardWorker<A>& worker, A* d) {
    const RowPass<A> pass{b.rows, b.columns,
                          widened<A>(groups.stored(args.input, group, b), p.dtype, b.rows, b.columns, worker.x),
                          factors.from(groups.number(group, b.row))};
    const Rows<const A> grad = widened<A>(groups.stored(args.grad, group, b), p.dtype, b.rows, b.columns, worker.grad);
    slope(pass, p.lower_slope, grad, {d, b.columns}, {worker.product, b.columns});
    return std::pair(pass, grad);
  };
  const auto place = [&](const Block& b, const BackwardWorker<A>& worker, bool kept) -> A* {
    return kept ? worker.kept + b.row * groups.columns + b.column * b.rows : worker.d;
  };
  const bool keeps = dx_wanted && sums_wanted && size <= kElementsKept && takes_whole_regions(groups.count);

  const auto sum = [&](int64_t group, int64_t block, const BackwardWorker<A>& worker) {
    if (!sums_wanted) return;
    const Block b = groups.block(block);
    A* d = place(b, worker, keeps);
    const auto [pass, grad] = differentiate(group, b, worker, d);
    const int64_t row = groups.number(group, b.row), chunk = b.column / groups.block_columns;
    sum_backward<A, false, false>(pass, {d, b.columns}, {sums.part(0, row) + chunk, sums.part(1, row) + chunk});
    if (kinds.of_z) {
      RowPass<A> z = pass;
      z.by = factors.of_z(row);
      add_products<A, false, false>(z, {d, b.columns}, sums.part(2, row) + chunk);
    }
    if (!kinds.post) return;
    add_rows<A>(b.rows, b.columns, grad, sums.part(2, row) + chunk);
    add_rows<A>(b.rows, b.columns, {worker.product, b.columns}, sums.part(3, row) + chunk);
  };
  const auto finish = [&](int64_t group) {
    if (!sums_wanted) return;
    const int64_t first = groups.number(group, 0);
    const double rstd = rstd_in(group);
    const A* weight = factors.weight(first);
    double *d = sums.row(0, first), *of_xhat = sums.row(1, first), all = 0, along = 0;
    sums.add_up(first, groups.rows);
    for (int64_t begin = 0; begin < groups.rows; begin += kChain) {
      double some = 0, some_along = 0;
      for (int64_t r = begin; r < std::min(begin + kChain, groups.rows); ++r) {
        of_xhat[r] *= rstd;
        some += weight[r] * d[r], some_along += weight[r] * of_xhat[r];
      }
      all += some, along += some_along;
    }
    if (!normalises || p.is_constant()) return;
    std::fill_n(constant + first, groups.rows, static_cast<A>(all / size));
    std::fill_n(slope_of_xhat + first, groups.rows, static_cast<A>(along / size * rstd));
  };
  const auto apply = [&](int64_t group, int64_t block, const BackwardWorker<A>& worker) {
    if (!dx_wanted) return;
    const Block b = groups.block(block);
    A* d = place(b, worker, keeps);
    const int64_t at = groups.number(group, b.row);
    RowPass<A> pass{b.rows, b.columns, {}, factors.from(at)};
    if (keeps)
      pass.x = widened<A>(groups.stored(args.input, group, b), p.dtype, b.rows, b.columns, worker.x);
    else
      pass = differentiate(group, b, worker, d).first;
    const StoredRows to = groups.stored(args.grad_input, group, b);
    const Rows<A> dx = target<A>(to, p.dtype, b.columns, worker.out);
    grad_input_rows<A, false, false>(
        pass, {d, b.columns}, {p.is_constant() ? constant + at : factors.weight(at), constant + at, slope_of_xhat + at},
        dx, soon(groups.stored(args.input, groups.after(group), b), p.dtype),
        soon(groups.stored(args.grad, groups.after(group), b), p.dtype));
    narrow_rows(to, p.dtype, b.rows, b.columns, dx);
  };
  in_stages(groups.shares(), [&] { return BackwardWorker<A>(keeps ? size : 0); }, prepare, sum, finish, apply);
  finish_factors(p, args, table, {sums.row(0, 0), sums.row(1, 0), sums.row(2, 0), sums.row(3, 0)});
}

template void forward_of_planes<float>(const NormProblem&, const NormForwardArgs&);
template void forward_of_planes<double>(const NormProblem&, const NormForwardArgs&);
template void backward_of_planes<float>(const NormProblem&, const NormBackwardArgs&);
template void backward_of_planes<double>(const NormProblem&, const NormBackwardArgs&);

}  // namespace film::FILM_ISA
