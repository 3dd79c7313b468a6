// The row of this instruction set in the table that library.cpp chooses from.
#include "kernels.h"

#define FILM_STRING(x) #x
#define FILM_NAME(x) FILM_STRING(x)

namespace film::FILM_ISA {

void run_forward(const Problem&, const ForwardArgs&);
PackedWeight packing(const Problem&, const View& weight);
void run_pack(const Problem&, const PackArgs&);
void run_grad_input(const Problem&, const GradInputArgs&);
void run_grad_weight(const Problem&, const GradWeightArgs&);
bool library_is_faster(const Problem&, bool channels_last, Use);
void run_norm_forward(const NormProblem&, const NormForwardArgs&);
void run_norm_backward(const NormProblem&, const NormBackwardArgs&);

extern const Kernels kernels;
const Kernels kernels{FILM_NAME(FILM_ISA), run_forward,       packing,          run_pack,         run_grad_input,
                      run_grad_weight,     library_is_faster, run_norm_forward, run_norm_backward};

}  // namespace film::FILM_ISA
