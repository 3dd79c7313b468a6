// Parts of tensors by name, in place of rows of integers.
#pragma once

#include <cstdint>

namespace film {

// `count` columns of row h of sample n, from column `first` on, `step` apart.
struct ColumnRun {
  int64_t n, h, first, count, step = 1;
};

// Rows [first, first + count) of sample n.
struct RowRange {
  int64_t n, first, count;
};

// Channels [first, first + count), numbered through all groups.
struct ChannelRange {
  int64_t first, count;
};

}  // namespace film
