// The row of this instruction set in the table that library.cpp chooses from.
#include "table.h"

#include "library_is_faster.h"

#define FILM_STRING(x) #x
#define FILM_NAME(x) FILM_STRING(x)

namespace film::FILM_ISA {

extern const Kernels kernels;
const Kernels kernels{FILM_NAME(FILM_ISA), run_forward,       packing,          run_pack,         run_grad_input,
                      run_grad_weight,     library_is_faster, run_norm_forward, run_norm_backward};

}  // namespace film::FILM_ISA
