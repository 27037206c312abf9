/**
 * Progress of a long command: a bar on a terminal, plain lines elsewhere, messages to the parent if this process was forked
 * with RAPO_PROGRESS=ipc.
 */
import type { ChildProcess } from 'node:child_process'
import { MultiBar } from 'cli-progress'
import { RapoError } from '../base/errors.js'
import { plainLine, plainText } from '../base/text.js'

/** Running values shown beside the bar, such as { reward: 0.31 }. */
export type Fields = Readonly<Record<string, number | string>>

/** What else is known of the work. */
export interface Outlook {
  /** Milliseconds that the rest will take; counts down until the next update. Default: as fast as the last units were. */
  readonly left?: number | undefined
  /** What is being done that is no unit, such as 'saving'. Shown until the next update. */
  readonly activity?: string | undefined
}

export interface Progress {
  /** done of total units; fields are merged into those given before. */
  update(done: number, fields?: Fields, outlook?: Outlook): void
  /** Prints a line above the bar. */
  log(line: string): void
  /** Leaves the last state on the screen. Idempotent; later calls do nothing. */
  stop(): void
}

/** What a forked process with RAPO_PROGRESS=ipc sends to its parent. */
export type ProgressMessage =
  | ({
      type: 'progress'
      label: string
      done: number
      total: number
      unit?: string
      fields: Fields
    } & Outlook)
  | { type: 'log'; line: string }

/** The progress of several child processes. */
export interface MultiProgress {
  /**
   * Shows the messages of a child forked with env RAPO_PROGRESS=ipc under this name, in the slot's line: what the slot showed
   * before is gone. Default: a slot of the name's own.
   */
  attach(name: string, child: ChildProcess, slot?: string): void
  /** Handles one message, as attach() does. Anything that is not a ProgressMessage is ignored. */
  receive(name: string, message: unknown, slot?: string): void
  /** How far all the work is, in a line of its own. The ETA is taken from the whole time since the first call. */
  total(label: string, done: number, total: number, unit: string): void
  log(line: string): void
  stop(): void
}

export interface ProgressTarget {
  /** Default: stderr. */
  stream?: NodeJS.WritableStream & { isTTY?: boolean; columns?: number }
  /** A monotonic clock in milliseconds. Default: performance.now. */
  clock?: () => number
  env?: NodeJS.ProcessEnv
}

export interface ProgressOptions extends ProgressTarget {
  label: string
  /** Units of work, ≥ 0. */
  total: number
  /** Name of the units in the plural, such as 'steps'. */
  unit?: string
  /** Units done before this process began (a resumed run); they do not count into the ETA. Default 0. */
  done?: number
  /** Sends a message to the parent. Default: process.send, if there is a channel. */
  send?: (message: ProgressMessage) => void
}

/** A plain line is printed after every tenth of the work or after LINE_EVERY, but never two within LINE_GAP. Milliseconds. */
const LINE_EVERY = 15_000
const LINE_GAP = 2_000
/** Least time between two messages to the parent, except before the last. Milliseconds. */
const MESSAGE_GAP = 100
/** The ETA's rate is taken over the last RATE_MARKS marks, RATE_GAP apart: recent, since steps get slower as completions grow. */
const RATE_MARKS = 30
const RATE_GAP = 1_000

/** Throws ERR_RAPO_INVALID_ARGUMENT if total is not a number ≥ 0. */
export function createProgress(options: ProgressOptions): Progress {
  const { label, total, unit, clock = () => performance.now(), env = process.env } = options
  if (!(total >= 0 && total < Infinity)) {
    throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `progress total must be a number ≥ 0, got ${total}`)
  }
  const send = env.RAPO_PROGRESS === 'ipc' ? (options.send ?? parentChannel()) : undefined
  if (send) return messageProgress(label, total, unit, clock, send)
  const board = createBoard(options)
  const track = new Track(plainLine(label), total, unit, options.done ?? 0, clock)
  board.show('', track)
  return {
    update(done, fields, outlook) {
      track.update(done, fields, outlook)
      board.show('', track)
    },
    log: line => board.log(line),
    stop: () => board.stop(),
  }
}

export function createMultiProgress(target: ProgressTarget = {}): MultiProgress {
  const { clock = () => performance.now() } = target
  const board = createBoard(target)
  const tracks = new Map<string, Track>()

  const receive = (name: string, message: unknown, slot = name) => {
    if (!isProgressMessage(message)) return
    if (message.type === 'log') return board.log(`${name}: ${message.line}`)
    const label = plainLine(`${name}: ${message.label}`)
    let track = tracks.get(slot)
    // A child's next task (training, then evaluation) takes over its bar.
    if (track?.label !== label) {
      track = new Track(label, message.total, message.unit, message.done, clock)
      tracks.set(slot, track)
    }
    track.update(message.done, message.fields, message)
    board.show(slot, track)
  }
  let whole: Track | undefined
  return {
    attach(name, child, slot) {
      child.on('message', message => receive(name, message, slot))
    },
    receive,
    total(label, done, total, unit) {
      whole ??= new Track(label, total, unit, done, clock, Infinity)
      whole.update(done)
      board.show('', whole)
    },
    log: line => board.log(line),
    stop: () => board.stop(),
  }
}

function isProgressMessage(message: unknown): message is ProgressMessage {
  const type = (message as { type?: unknown } | null | undefined)?.type
  return type === 'progress' || type === 'log'
}

function parentChannel(): ((message: ProgressMessage) => void) | undefined {
  if (!process.send) return undefined
  // The callback takes the error when the parent is gone, which would otherwise end the run.
  return message => process.send?.(message, undefined, undefined, () => {})
}

function messageProgress(
  label: string,
  total: number,
  unit: string | undefined,
  clock: () => number,
  send: (message: ProgressMessage) => void,
): Progress {
  let fields: Fields = {}
  let outlook: Outlook = {}
  let done = 0
  let sentAt = -Infinity
  let unsent = false
  let stopped = false
  const flush = () => {
    sentAt = clock()
    unsent = false
    const { left, activity } = outlook
    send({
      ...{ type: 'progress', label, done, total, ...(unit === undefined ? {} : { unit }), fields },
      ...(left !== undefined && { left }),
      ...(activity !== undefined && { activity }),
    })
  }
  return {
    update(now, more, next = {}) {
      if (stopped) return
      done = now
      fields = { ...fields, ...more }
      outlook = next
      unsent = true
      if (done >= total || clock() - sentAt >= MESSAGE_GAP) flush()
    },
    log(line) {
      if (!stopped) send({ type: 'log', line })
    },
    stop() {
      if (unsent) flush()
      stopped = true
    },
  }
}

/** One piece of work: its progress and speed, as numbers and as text. */
class Track {
  private fields: Fields = {}
  private activity: string | undefined
  /** Milliseconds left at `at`. */
  private estimate: { readonly left: number; readonly at: number } | undefined
  private readonly startedAt: number
  private readonly marks: { time: number; done: number }[]

  constructor(
    readonly label: string,
    readonly total: number,
    readonly unit: string | undefined,
    public done: number,
    private readonly clock: () => number,
    /** Number of marks behind the ETA's rate. */
    private readonly rateMarks = RATE_MARKS,
  ) {
    this.startedAt = clock()
    this.marks = [{ time: this.startedAt, done }]
  }

  update(done: number, fields: Fields = {}, { left, activity }: Outlook = {}) {
    const isFurther = done !== this.done
    this.done = done
    this.fields = { ...this.fields, ...fields }
    this.activity = activity
    const now = this.clock()
    if (now - this.marks.at(-1)!.time >= RATE_GAP) {
      this.marks.push({ time: now, done })
      if (this.marks.length > this.rateMarks) this.marks.shift()
    }
    // Between two updates, and while only the activity changes, the time left counts down.
    if (left !== undefined) this.estimate = { left, at: now }
    else if (isFurther) this.estimate = this.byRate(now)
  }

  get fraction() {
    return this.total > 0 ? Math.min(1, Math.max(0, this.done / this.total)) : 1
  }

  private byRate(now: number) {
    const { time, done } = this.marks[0]!
    const rate = (this.done - done) / (now - time)
    return rate > 0 && rate < Infinity ? { left: (this.total - this.done) / rate, at: now } : undefined
  }

  /** Milliseconds left; undefined while the speed is unknown. */
  private get left() {
    if (this.done >= this.total) return 0
    const { estimate } = this
    return estimate && Math.max(0, estimate.left - (this.clock() - estimate.at))
  }

  private get count() {
    const unit = this.total === 1 ? this.unit?.replace(/s\b/, '') : this.unit
    return `${this.done}/${this.total}${unit ? ` ${unit}` : ''}`
  }

  private get times() {
    const elapsed = formatTime(this.clock() - this.startedAt)
    const activity = this.activity === undefined ? [] : [plainLine(this.activity)]
    if (this.done >= this.total) return [elapsed, ...activity]
    return [elapsed, `ETA ${this.left === undefined ? '–' : formatTime(this.left)}`, ...activity]
  }

  private get shownFields() {
    return Object.entries(this.fields).map(([name, value]) => `${name} ${formatValue(value)}`)
  }

  private get percent() {
    return `${Math.floor(this.fraction * 100)} %`
  }

  plainLine() {
    const [elapsed, ...eta] = this.times
    return `${this.label} ${[`${this.count} (${this.percent})`, `elapsed ${elapsed}`, ...eta, ...this.shownFields].join(', ')}`
  }

  /** A line of at most `width` columns. The bar is shortened first, then fields are dropped from the right. */
  barLine(width: number) {
    const texts = [this.percent.padStart(5), this.count, ...this.times, ...this.shownFields]
    const lengthOf = (parts: string[]) =>
      this.label.length + parts.reduce((sum, part) => sum + part.length + 2, 0)
    while (texts.length > 1 && lengthOf(texts) + 8 > width) texts.pop()
    const size = Math.min(12, width - lengthOf(texts) - 2)
    const filled = Math.round(this.fraction * size)
    const bar = size > 0 ? ['█'.repeat(filled) + '░'.repeat(size - filled)] : []
    return [this.label, ...bar, ...texts].join('  ').slice(0, Math.max(0, width))
  }
}

/** The place where tracks are shown: one line per slot. A later track takes over its slot's line. */
interface Board {
  show(slot: string, track: Track): void
  log(line: string): void
  stop(): void
}

function createBoard(target: ProgressTarget): Board {
  const { stream = process.stderr, clock = () => performance.now(), env = process.env } = target
  const board = stream.isTTY && env.TERM !== 'dumb' ? terminalBoard(stream) : plainBoard(stream, clock)
  return { ...board, log: line => board.log(plainText(line)) }
}

function plainBoard(stream: NodeJS.WritableStream, clock: () => number): Board {
  /** The last text printed for each slot, and its time. */
  const slots = new Map<string, { track: Track; done: number; time: number; tenth: number }>()
  let stopped = false
  const tenthOf = (track: Track) => Math.floor(track.fraction * 10)
  const print = (slot: string, track: Track) => {
    slots.set(slot, { track, done: track.done, time: clock(), tenth: tenthOf(track) })
    stream.write(`${track.plainLine()}\n`)
  }
  return {
    show(slot, track) {
      if (stopped) return
      const last = slots.get(slot)
      if (last?.track !== track) return print(slot, track)
      const since = clock() - last.time
      const isFinished = track.done >= track.total && track.done !== last.done
      const isDue = since >= LINE_EVERY || (since >= LINE_GAP && tenthOf(track) > last.tenth)
      if (isFinished || isDue) print(slot, track)
    },
    log(line) {
      if (!stopped) stream.write(`${line}\n`)
    },
    stop() {
      if (stopped) return
      for (const [slot, { track, done }] of slots) if (track.done !== done) print(slot, track)
      stopped = true
    },
  }
}

function terminalBoard(stream: NodeJS.WritableStream): Board {
  const bars = new MultiBar({
    stream,
    // The terminal's own modes stay as they are (cursor shown, wrapping on): nothing to restore after a crash.
    hideCursor: null,
    linewrap: true,
    // A bar that log() overwrote is drawn again even if its text is the same.
    forceRedraw: true,
    format: (_options, { maxWidth }, { track }: { track: Track }) => track.barLine(maxWidth - 1),
  })
  // The redraw timer must not keep the process alive if a run forgets stop() or throws.
  bars.on('update-post', () => (bars as unknown as { timer: NodeJS.Timeout }).timer.unref())
  const slots = new Map<string, ReturnType<MultiBar['create']>>()
  let stopped = false

  const stop = () => {
    if (stopped) return
    stopped = true
    process.removeListener('exit', stop)
    for (const signal of signals) process.removeListener(signal, onSignal)
    bars.update() // flushes log lines, which bars.stop() would drop
    bars.stop()
  }
  // Who else listens (the trainer, which finishes its step) decides; alone, this ends the line and lets the signal kill.
  const onSignal = (signal: NodeJS.Signals) => {
    if (process.listenerCount(signal) > 1) return
    stop()
    process.kill(process.pid, signal)
  }
  process.on('exit', stop)
  for (const signal of signals) process.on(signal, onSignal)

  return {
    show(slot, track) {
      if (stopped) return
      const bar = slots.get(slot)
      if (bar) bar.update(track.done, { track })
      else slots.set(slot, bars.create(track.total, track.done, { track }))
    },
    log(line) {
      // Each line clears the rest of the bar to its right.
      if (!stopped) for (const part of line.split('\n')) bars.log(`${part}\x1b[K\n`)
    },
    stop,
  }
}

const signals = ['SIGINT', 'SIGTERM'] as const

function formatTime(milliseconds: number) {
  const seconds = Math.round(milliseconds / 1000)
  const two = (value: number) => String(value).padStart(2, '0')
  const minutes = Math.floor(seconds / 60)
  if (minutes < 60) return `${minutes}:${two(seconds % 60)}`
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`
}

function formatValue(value: number | string) {
  if (typeof value === 'string') return plainLine(value)
  if (Number.isInteger(value)) return String(value)
  // A fixed number of digits, so that the line does not jitter.
  return Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3)
}
