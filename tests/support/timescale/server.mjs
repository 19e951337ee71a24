// A TimescaleDB for tests: PostgreSQL's wire protocol on 127.0.0.1 over PGlite, data in memory.
//
//     node server.mjs [--port N]
//
// prints `listening PORT` when it is ready, and ends with its standard input (so with the test run that started it, even
// if that is killed) or on SIGTERM.

import net from 'node:net'

import { Backend, Refusal, Seat } from './backend.mjs'
import { FLUSH, Inbox, SYNC, copyIn, error, message, ready, text, texts, types, without } from './wire.mjs'

const PROTOCOL_3 = 196608
const CANCEL = 80877102
const SSL = 80877103
const GSS = 80877104

// The backend reads COPY's data from the buffer that holds the COPY itself, and aborts if there is none.
const IS_COPY_IN = /^\s*COPY\b[^;]*\bFROM\s+STDIN\b[^;]*;?\s*$/i
const HAS_COPY_IN = /\bCOPY\b[^;]*\bFROM\s+STDIN\b/i
const NO_COPY = error('ERROR', '0A000', 'this test server takes COPY FROM STDIN only as a simple query of its own')

const clients = new Map() // by number

/** One connection. Its messages are taken in order, one at a time. */
class Client {
  #inbox = new Inbox()
  #busy = false
  #gone = false
  #pipeline = [] // messages before the Sync, Flush or Query that sends them to the backend
  #copy = null // the same for a COPY: Query, CopyData…
  #skipping = false // after an error, until Sync, as in PostgreSQL

  constructor(socket, backend, number) {
    this.socket = socket
    this.backend = backend
    this.number = number
    this.secret = Math.floor(Math.random() * 2 ** 31)
    socket.setNoDelay(true)
    socket.on('data', (chunk) => this.#arrive(chunk))
    socket.on('error', () => {}) // 'close' follows
    socket.on('end', () => this.#leave()) // nobody who has stopped sending still wants an answer
    socket.on('close', () => this.#leave())
  }

  #arrive(chunk) {
    this.#inbox.push(chunk)
    this.#pump()
  }

  async #pump() {
    if (this.#busy) return
    this.#busy = true
    try {
      for (let bytes; !this.#gone && (bytes = this.#inbox.take(this.seat ? 1 : 0)); ) {
        if (this.seat) await this.#take(bytes)
        else this.#start(bytes)
      }
    } catch (problem) {
      this.#hang_up('08P01', problem.message) // a message that could not be read; the backend's errors do not come here
    }
    this.#busy = false
    if (this.#gone) this.#leave()
  }

  /** Take one packet of the time before the session: a request for encryption, to cancel, or to start. */
  #start(bytes) {
    const code = bytes.readInt32BE(4)
    if (code === SSL || code === GSS) this.socket.write('N')
    else if (code === CANCEL) this.#cancel(bytes)
    else if (code === PROTOCOL_3) this.#welcome(bytes)
    else this.#hang_up('0A000', `expected protocol 3.0, got ${code}`)
  }

  /** A running statement cannot be interrupted, one that still waits for its turn can. */
  #cancel(bytes) {
    const secret = bytes.readInt32BE(12) // all have the process id of the one backend
    const other = [...clients.values()].find((client) => client.secret === secret)
    if (other?.seat) {
      this.backend.refuse(other.seat, new Refusal('57014', 'canceling statement due to user request'))
    }
    this.socket.destroy()
  }

  #welcome(bytes) {
    // The encoding is left out: it is UTF8, and nothing else is sent by anyone today.
    const { user, database = user, client_encoding, options = '', ...startup } = texts(bytes, 8)
    if (user !== 'postgres') return this.#hang_up('28000', `the only role here is postgres, not "${user}"`)
    if (database !== 'postgres') return this.#hang_up('3D000', `the only database here is postgres, not "${database}"`)
    for (const [, name, value] of options.matchAll(/(?:-c\s*|--)([\w.]+)=(\S+)/g)) startup[name] = value
    this.seat = new Seat(startup)
    const reported = { ...this.backend.reported, session_authorization: user, ...startup }
    this.socket.write(Buffer.concat([
      message('R', 0),
      ...Object.entries(reported).map(([name, value]) => message('S', name, value)),
      message('K', this.backend.pid, this.secret),
      ready('I'),
    ]))
  }

  async #take(bytes) {
    const type = String.fromCharCode(bytes[0])
    if (type === 'X') this.#end()
    else if (this.#copy) await this.#take_copy(type, bytes)
    else if (type === 'S') await this.#sync()
    else if (this.#skipping) return
    else if (type === 'Q') await this.#query(bytes)
    else if (type === 'H') await this.#flush()
    else if (type === 'P') this.#parse(bytes)
    else if ('BCDE'.includes(type)) this.#pipeline.push(this.#renamed(type, bytes))
    else if (!'dcf'.includes(type)) this.#hang_up('08P01', `message type ${JSON.stringify(type)} is not known here`)
    // CopyData, CopyDone and CopyFail outside a COPY are ignored, as in PostgreSQL: the COPY had failed at its beginning.
  }

  async #query(bytes) {
    const [sql] = text(bytes, 5)
    this.seat.read(sql)
    if (IS_COPY_IN.test(sql)) {
      this.#copy = [bytes]
      this.socket.write(copyIn(/\bbinary\b/i.test(sql)))
    } else if (HAS_COPY_IN.test(sql)) {
      this.socket.write(Buffer.concat([NO_COPY, ready(this.seat.status)]))
    } else {
      await this.#run([...this.#pipeline.splice(0), bytes])
    }
  }

  async #take_copy(type, bytes) {
    if (!'dcf'.includes(type)) return // Flush and Sync are ignored during a COPY
    this.#copy.push(bytes)
    if (type === 'd') return
    const whole = Buffer.concat(this.#copy)
    this.#copy = null
    await this.#run([whole], 'G') // the client has had its CopyInResponse
  }

  #parse(bytes) {
    const [name, at] = text(bytes, 5)
    const [sql] = text(bytes, at)
    this.seat.read(sql)
    if (HAS_COPY_IN.test(sql)) {
      this.#skipping = true
      this.socket.write(NO_COPY)
      return
    }
    const parse = this.#renamed('P', bytes)
    if (name) this.seat.statements.add(text(parse, 5)[0])
    this.#pipeline.push(parse)
  }

  async #sync() {
    this.#skipping = false
    const pipeline = this.#pipeline.splice(0)
    // After a refusal there is nothing to synchronize, and no reason to wait for a turn again.
    if (pipeline.length === 0 && !this.seat.mid_pipeline) this.socket.write(ready(this.seat.status))
    else await this.#run([...pipeline, SYNC])
  }

  /**
   * asyncpg prepares with Parse, Describe, Flush, and may then stay silent: until its Sync no one else could have a turn.
   * A Sync instead of the Flush changes nothing for a named statement, so send that and keep the ReadyForQuery.
   */
  async #flush() {
    const pipeline = this.#pipeline.splice(0)
    const only_prepares = pipeline.every((bytes) => 'PDC'.includes(String.fromCharCode(bytes[0])) && is_named(bytes))
    if (this.seat.mid_pipeline || !only_prepares) await this.#run([...pipeline, FLUSH], 'Z')
    else this.#skipping = types(await this.#run([...pipeline, SYNC], 'Z')).includes('E')
  }

  /** Run a whole exchange, send the answer but for messages of type `omitted`, and return what was sent. */
  async #run(messages, omitted = '') {
    let answer
    try {
      answer = await this.backend.run(this.seat, messages)
    } catch (problem) {
      if (!(problem instanceof Refusal)) end_backend(problem)
      answer = Buffer.concat([error('ERROR', problem.code, problem.message), ready(this.seat.status)])
    }
    const sent = omitted ? without(omitted, answer) : answer
    this.socket.write(sent)
    return sent
  }

  /**
   * `bytes` with the names of statements made this client's own: the backend has one set of names for all clients.
   * Portals need none of this (they end with the transaction, so with the turn), nor has the unnamed statement.
   */
  #renamed(type, bytes) {
    let at = 5
    if (type === 'E') return bytes
    if (type === 'B') at = text(bytes, at)[1]
    if ('CD'.includes(type) && String.fromCharCode(bytes[at++]) === 'P') return bytes
    const [name, end] = text(bytes, at)
    if (!name) return bytes
    return message(type, bytes.subarray(5, at), `${this.number}:${name}`, bytes.subarray(end))
  }

  #hang_up(code, reason) {
    this.#end(error('FATAL', code, reason))
  }

  #end(last_words = '') {
    this.#gone = true
    this.socket.end(last_words)
  }

  async #leave() {
    this.#gone = true
    if (!clients.has(this.number)) return // it has left: 'close' comes after 'end', and its last turn must not be refused
    if (this.seat) this.backend.refuse(this.seat, new Refusal('08006', 'the client is gone'))
    if (this.#busy) return // this is called again when it no longer is
    clients.delete(this.number)
    if (this.seat) await this.backend.leave(this.seat).catch(end_backend)
  }
}

const is_named = (bytes) => text(bytes, bytes[0] === 0x50 ? 5 : 6)[0] !== ''

/** After an abort in WebAssembly nothing can be trusted: tell every client, and end. */
function end_backend(problem) {
  console.error('timescale test server: the backend has aborted:', problem)
  for (const { socket } of clients.values()) socket.write(error('FATAL', 'XX000', `the backend has aborted: ${problem}`))
  process.exit(1)
}

process.on('SIGTERM', () => process.exit(0))
process.stdin.on('end', () => process.exit(0)).on('error', () => process.exit(0)).resume()

const at = process.argv.indexOf('--port')
const port = at === -1 ? 0 : Number(process.argv[at + 1])
const backend = await Backend.start()
let n_clients = 0
const server = net.createServer((socket) => {
  const client = new Client(socket, backend, ++n_clients)
  clients.set(client.number, client)
})
server.listen(port, '127.0.0.1', () => console.log(`listening ${server.address().port}`))
