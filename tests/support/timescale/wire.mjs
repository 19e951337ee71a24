// PostgreSQL's wire protocol, as far as the test server needs it: frames, and the few messages it writes itself.

/** A message: its type, the length of the rest, the rest. Text becomes a C string, a number an int32. */
export function message(type, ...fields) {
  const body = Buffer.concat(fields.map((field) => (Buffer.isBuffer(field) ? field : field_bytes(field))))
  const head = Buffer.alloc(5, type)
  head.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}

function field_bytes(field) {
  if (typeof field === 'string') return Buffer.from(`${field}\0`)
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(field)
  return bytes
}

export const SYNC = message('S')
export const FLUSH = message('H')
export const query = (sql) => message('Q', sql)
export const closeStatement = (name) => message('C', Buffer.from('S'), name)
export const ready = (status) => message('Z', Buffer.from(status))
export const error = (severity, code, text) => message('E', `S${severity}`, `V${severity}`, `C${code}`, `M${text}`, Buffer.alloc(1))
export const copyIn = (binary) => message('G', Buffer.from([binary ? 1 : 0, 0, 0]))

/** The C string at `offset`, and where the next field begins. */
export function text(bytes, offset) {
  const end = bytes.indexOf(0, offset)
  if (end === -1) throw new RangeError('expected a zero byte at the end of a text, got the end of the message')
  return [bytes.toString('utf8', offset, end), end + 1]
}

/** The pairs of C strings from `offset` to an empty one. */
export function texts(bytes, offset) {
  const pairs = {}
  while (bytes[offset] !== 0) {
    const [name, middle] = text(bytes, offset)
    const [value, end] = text(bytes, middle)
    pairs[name] = value
    offset = end
  }
  return pairs
}

function* split(bytes) {
  for (let end, at = 0; at < bytes.length; at = end) {
    end = at + 1 + bytes.readInt32BE(at + 1)
    yield bytes.subarray(at, end)
  }
}

const type = (bytes) => String.fromCharCode(bytes[0])

/** The types of the messages in `bytes`. */
export const types = (bytes) => [...split(bytes)].map(type)

/** The messages in `bytes` but for those of type `omitted`. */
export const without = (omitted, bytes) => Buffer.concat([...split(bytes)].filter((one) => type(one) !== omitted))

/** Bytes as they arrive, taken out as whole messages. Joins chunks only when a message is complete: COPY sends big ones. */
export class Inbox {
  #chunks = []
  #size = 0

  push(chunk) {
    this.#chunks.push(chunk)
    this.#size += chunk.length
  }

  /** The next message with its head, or null. Startup packets have no type: `head` is 0 for them, 1 for all others. */
  take(head) {
    if (this.#size < head + 4) return null
    if (this.#chunks[0].length < head + 4) this.#chunks = [Buffer.concat(this.#chunks)]
    const size = head + this.#chunks[0].readUInt32BE(head)
    if (size < head + 4) throw new RangeError(`expected a message length of at least 4, got ${size - head}`)
    if (this.#size < size) return null
    const joined = this.#chunks.length > 1 && this.#chunks[0].length < size ? Buffer.concat(this.#chunks) : this.#chunks.shift()
    if (joined.length === this.#size) this.#chunks = []
    this.#size -= size
    if (joined.length > size) this.#chunks.unshift(joined.subarray(size))
    return joined.subarray(0, size)
  }
}
