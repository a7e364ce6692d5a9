package kvevents

// kind says what an event tells. The values index the names of metrics.
type kind uint8

const (
	kindOther kind = iota // a tag of a later vLLM; skipped
	kindStored
	kindRemoved
	kindCleared
)

// kinds is how many there are.
const kinds = 4

var kindNames = [kinds]string{"other", "stored", "removed", "cleared"}

// batch is one message: what happened in one step of an engine. Its memory is
// used again by the next decode.
type batch struct {
	// time is the engine's clock in seconds since the Unix epoch.
	time   float64
	events []event

	// hashes and tokens are the memory behind the events' slices.
	hashes []uint64
	tokens []uint32
	// The following are of the event that is being decoded: what they say depends
	// on fields that may come later. extra are its extra_keys, still packed;
	// numbered says that it tells an adapter's number.
	extra    []byte
	numbered bool
}

// event is one event, in the form that all versions share. What the index has
// no use for (locality, ownership, session) is not kept.
type event struct {
	kind kind
	// hashes are the engine's names of the blocks. Integers are taken as they
	// are; of bytes the last eight, big-endian, which is the integer that the
	// same engine would publish by default.
	hashes []uint64
	// parent is the hash of the block before the first; hasParent is false
	// where that is the prompt's first block.
	parent    uint64
	hasParent bool
	// tokens are the blocks' token ids, one block after the other. Empty for
	// blocks that are told by their hash alone (an offloading tier).
	tokens []uint32
	// blockSize is the number of tokens of a block; 0 where it is not told.
	blockSize int
	// adapter is the LoRA adapter that the blocks were computed with, and salt the
	// cache_salt that their prompt's first block tells; empty: none.
	adapter, salt string
	// foreign is the index of the first block whose hash has something in it that
	// we cannot know of a prompt: an image, embeddings, an adapter told by its
	// number alone, or what a later vLLM may add; -1: none.
	foreign int
	// medium is where the blocks are, in lower case; gpu where it is not told.
	medium string
	// group numbers the KV cache group of layers that are cached alike.
	group int
	// spec is vLLM's name of the group's attention, window its length in
	// tokens; empty and 0 where not told.
	spec   string
	window int
}

// mediumGPU is the medium of the engine's own KV cache, the only one that
// AllBlocksCleared speaks of.
const mediumGPU = "gpu"
