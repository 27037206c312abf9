/**
 * cuda-emulator.test.ts once more on an emulated device without a second-level cache and with little shared memory, so
 * that rows of all lengths are kept there, by clusters of one to eight blocks.
 */
process.env.RAPO_CUDA_EMULATOR_L2 = '0'
process.env.RAPO_CUDA_EMULATOR_SHARED = String(24 << 10)
await import('./cuda-emulator.test.js')
