// The notes that an ONNX file carries. onnxruntime-web shows none of them, so they are read from the
// file itself: a ModelProto in protobuf's wire format, of which all but one field is skipped.

const METADATA_PROPS = 14; // of ModelProto
const [KEY, VALUE] = [1, 2]; // of StringStringEntryProto
const [VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES] = [0, 1, 2, 5];

/**
 * The metadata of a model.
 *
 * @param {Uint8Array} bytes an ONNX file
 * @returns {Record<string, string>}
 * @throws {Error} when the bytes are no ONNX file, as far as that can be seen here
 */
export function readMetadata(bytes) {
  const text = new TextDecoder();
  const metadata = {};
  for (const { number, content } of fields(bytes)) {
    if (number !== METADATA_PROPS || !content) continue;
    const entry = { [KEY]: "", [VALUE]: "" };
    for (const part of fields(content)) entry[part.number] = text.decode(part.content);
    metadata[entry[KEY]] = entry[VALUE];
  }
  return metadata;
}

/** The fields of a protobuf message: their numbers and, of delimited ones, the content. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 63) throw new Error("this is not an ONNX file");
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const [number, wire] = [Math.floor(tag / 8), tag % 8];
    let content = null;
    if (wire === VARINT) varint();
    else if (wire === EIGHT_BYTES) at += 8;
    else if (wire === FOUR_BYTES) at += 4;
    else if (wire === DELIMITED) {
      const length = varint();
      content = bytes.subarray(at, at + length);
      at += length;
    } else throw new Error("this is not an ONNX file");
    if (at > bytes.length) throw new Error("this is not an ONNX file, or only a part of one");
    yield { number, content };
  }
}
