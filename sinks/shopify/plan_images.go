package shopify

import (
	"slices"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// images compares our images with the document's and returns those to be added. What is in the shop already is never
// uploaded again: the URL is an image's identity, whatever its alt text and place.
func (u *update) images() []document.Image {
	if !u.doc.Images.Owned {
		u.d.shadow.release("images", true) // also without a list: an earlier life of the state may have uploaded some
		return nil
	}
	if u.old.Released["images"] { // a second upload would stand beside the first
		u.read()
	}
	want := uniqueImages(u.doc.Images.Value)
	var files []any
	var removed []string // ids
	alts := map[string]string{}
	for n, have := range u.old.Images {
		at := slices.IndexFunc(want, func(i document.Image) bool { return i.URL == have.URL })
		if slices.ContainsFunc(u.old.Images[:n], func(i ShadowImage) bool { return i.URL == have.URL }) {
			at = -1 // a second copy, which a late request has uploaded
		}
		if at >= 0 && want[at].Alt == have.Alt {
			continue
		}
		if have.ID == "" {
			u.read()
			continue
		}
		if at < 0 {
			// Taken off the product; the file stays in the shop, as a merchant may use it elsewhere.
			files = append(files, map[string]any{"id": have.ID, "referencesToRemove": []any{u.old.ID}})
			removed = append(removed, have.ID)
			continue
		}
		files = append(files, map[string]any{"id": have.ID, "alt": want[at].Alt})
		alts[have.URL] = want[at].Alt
	}
	for chunk := range slices.Chunk(files, maxInputRows) {
		u.add(newOp("fileUpdate", map[string]any{"files": chunk}))
	}
	if len(files) > 0 {
		u.d.ops[len(u.d.ops)-1].done = func(s *Shadow, _ map[string]any) {
			s.Images = slices.DeleteFunc(s.Images, func(i ShadowImage) bool { return i.ID != "" && slices.Contains(removed, i.ID) })
			for i := range s.Images {
				if alt, ok := alts[s.Images[i].URL]; ok {
					s.Images[i].Alt = alt
				}
			}
		}
		u.say("%s removed or renamed", count(len(files), "image"))
	}
	var added []document.Image
	for _, image := range want {
		if !slices.ContainsFunc(u.old.Images, func(i ShadowImage) bool { return i.URL == image.URL }) {
			added = append(added, image)
		}
	}
	if len(added) == 0 && len(removed) == 0 {
		u.reorder(want)
	}
	return added
}

// reorder moves our images into the document's order. It waits until all are there, as it needs their ids.
func (u *update) reorder(want []document.Image) {
	same := slices.EqualFunc(u.old.Images, want, func(a ShadowImage, b document.Image) bool { return a.URL == b.URL })
	if same {
		return
	}
	var moves []any
	next := make([]ShadowImage, 0, len(want))
	for i, image := range want {
		at := slices.IndexFunc(u.old.Images, func(s ShadowImage) bool { return s.URL == image.URL })
		have := u.old.Images[at]
		if have.ID == "" {
			u.read()
			return
		}
		have.Alt = image.Alt
		next = append(next, have)
		// UnsignedInt64 is a string on the wire.
		moves = append(moves, map[string]any{"id": have.ID, "newPosition": itoa(i)})
	}
	o := newOp("productReorderMedia", map[string]any{"id": u.old.ID, "moves": moves})
	o.done = func(s *Shadow, _ map[string]any) { s.Images = next }
	u.add(o)
	u.say("order of the images")
}

func uniqueImages(images []document.Image) []document.Image {
	var out []document.Image
	for _, image := range images {
		if !slices.ContainsFunc(out, func(o document.Image) bool { return o.URL == image.URL }) {
			out = append(out, image)
		}
	}
	return out
}
