/** What `rapo train --dry-run` prints. */
import { moments } from '../base/stats.js'
import { byteSize, plural } from '../base/text.js'
import { formatDisk } from '../train/disk.js'
import type { DryRun } from '../train/dry-run.js'
import { formatMemory } from '../train/memory.js'

/** Completions that are shown, and characters of each. */
const SHOWN = 4
const LONGEST = 2000

/** As lines for people. */
export function formatDryRun({ problem, prompt, promptTokens, rollouts, room }: DryRun): string {
  const indent = (text: string) => `  ${text.slice(0, LONGEST).replaceAll('\n', '\n  ')}`
  const parts = [
    `the prompt of problem "${problem.id}" as the model gets it, ${plural(promptTokens, 'token')}:\n${indent(prompt)}`,
    `the answer:\n${indent(JSON.stringify(problem.answer))}`,
  ]
  for (const [i, rollout] of rollouts.slice(0, SHOWN).entries()) {
    const { completion, completionIds, finishReason, reward, reason, parts: rewards } = rollout
    const end = finishReason === 'length' ? 'cut off by sampling.maxNewTokens' : 'ended by itself'
    const names = rewards?.map(({ name, weight, reward }) => `${name} ${reward} × ${weight}`)
    const why = [...(names ? [names.join(' + ')] : []), ...(reason ? [reason] : [])].join('; ')
    parts.push(
      `completion ${i + 1} of ${rollouts.length}, ${plural(completionIds.length, 'token')}, ${end}:\n${indent(completion)}\n` +
        `reward ${reward}${why && `: ${why}`}`,
    )
  }
  parts.push(describeGroup(rollouts))
  if (room) {
    const free = room.free === undefined ? '' : `, of ${byteSize(room.free)} free`
    parts.push(`memory that the run will need\n${formatMemory(room.memory)}`)
    parts.push(`disk that its checkpoints will need${free}\n${formatDisk(room.disk)}`)
  }
  return [...parts, 'nothing was written'].join('\n\n')
}

function describeGroup(rollouts: DryRun['rollouts']): string {
  const rewards = rollouts.map(({ reward }) => reward)
  const tokens = rollouts.reduce((sum, { completionIds }) => sum + completionIds.length, 0)
  const cut = rollouts.filter(({ finishReason }) => finishReason === 'length').length
  const { mean } = moments(rewards)
  const flat = rewards.every(reward => reward === rewards[0])
    ? '\nall rewards are equal: from such a group the policy term learns nothing'
    : ''
  return (
    `the group of ${rollouts.length}: rewards ${Math.min(...rewards)} to ${Math.max(...rewards)}, mean ${Number(mean.toPrecision(3))}; ` +
    `${plural(tokens, 'token')}, ${cut} of ${rollouts.length} completions cut off${flat}`
  )
}
