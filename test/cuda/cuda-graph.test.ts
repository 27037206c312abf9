/** The loss and the fused head captured in a graph, under the emulator: test/cuda/graph.cpp. */
import { dirname, join } from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { emulated, run } from './library.js'

if (emulated) {
  test('what a graph replays is what a direct call does', async () => {
    const said = await run(join(dirname(process.env.RAPO_CUDA_LIBRARY!), 'rapo_cuda_graph'), [])
    assert.match(said, /graph: loss: replays give the bits of direct calls/)
    assert.match(said, /graph: fused head: replays give the bits of direct calls/)
  })
}

test.run()
