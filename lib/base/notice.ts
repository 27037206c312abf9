/** What a person should know while something runs. */
import { type Watched, watched } from './call.js'
import { plainLine } from './text.js'

/** Tells a text, in one line, to the user's onNotice; where there is none it becomes a warning of the process. */
export function notices(onNotice: ((text: string) => unknown) | undefined): Watched<[text: string]> {
  return watched('onNotice', text => {
    if (onNotice) return onNotice(plainLine(text))
    process.emitWarning(plainLine(text), 'RapoWarning')
  })
}
