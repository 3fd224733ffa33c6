package shopify

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"runtime/debug"
	"sync"

	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
)

// sameVersion is raised when the planner makes something else of the same document and shadow. A released build also
// believes no other build's marks.
const sameVersion = 1

// sameSeed names the planner that has compared.
var sameSeed = sync.OnceValue(func() []byte {
	seed := []byte{sameVersion}
	if b, ok := debug.ReadBuildInfo(); ok {
		seed = append(seed, b.Main.Version...)
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				seed = append(seed, s.Value...)
			}
		}
	}
	return seed
})

// markSame is the mark of a document's text in the shadow of a product that it leaves as it is.
func markSame(raw json.RawMessage) string {
	h := sha256.New()
	h.Write(sameSeed())
	h.Write(raw)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

const sameLead = `{"same":"`

// Same reports whether the plan of a product in a shop is known before its document is parsed: the same text was
// compared with the same shadow before, nothing was left to do, and the outcome of that was the last. Whatever is sent
// rewrites the shadow, and takes the mark out of it.
func Same(known *work.Known, raw json.RawMessage) bool {
	if known.LastStatus != event.Skipped || known.LastReason != ReasonUnchanged || known.Attempt != 0 || len(known.Intents) > 0 {
		return false
	}
	rest, ok := bytes.CutPrefix(known.Shadow, []byte(sameLead))
	mark, _, closed := bytes.Cut(rest, []byte{'"'})
	return ok && closed && string(mark) == markSame(raw)
}

// Same is the package's; see there.
func (s *Shops) Same(known *work.Known, raw json.RawMessage) bool { return Same(known, raw) }
