/** What `import 'rapo/math'` gives: is an answer the reference? No addon, no dependency, no access to files. */

export {
  type CompareOptions,
  type Comparison,
  compareAnswers,
  type Extraction,
  extractAnswer,
  type MathOptions,
  type Tolerance,
  verifyMath,
} from './reward/math.js'
export type { Verdict } from './reward/verifier.js'
