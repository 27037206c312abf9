// Marks a function that nvcc compiles for host and device; empty for other compilers.
#pragma once

#ifdef __CUDACC__
#define RAPO_HOST_DEVICE __host__ __device__
#else
#define RAPO_HOST_DEVICE
#endif
