package shopifysim

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

func fileMutations() fields {
	return fields{"fileCreate": fileCreate, "fileUpdate": fileUpdate, "fileDelete": fileDelete}
}

// maxAlt is the longest alternative text.
const maxAlt = 512

func fileCreate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	var made []*media
	for i, in := range asInputs(a["files"]) {
		source := in.text("originalSource")
		switch {
		case !downloadable(source):
			errs.add("INVALID_IMAGE_SOURCE_URL", "Image URL is invalid", "files", i, "originalSource")
		case len(in.text("alt")) > maxAlt:
			errs.add("ALT_VALUE_LIMIT_EXCEEDED", "The alt value exceeds the maximum limit of 512 characters.", "files", i, "alt")
		default:
			kind := kindOf(in.text("contentType"))
			if !in.given("contentType") {
				kind = kindByName(in.text("filename"), source)
			}
			made = append(made, x.newMedia(kind, source, in.text("alt"), in.text("filename")))
		}
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"files": []any{}})
	}
	x.keep(made...)
	return x.payload(nil, record{"files": nodes(made)})
}

// kindByName infers a file's type from its extension.
func kindByName(filename, source string) string {
	if filename == "" {
		filename, _, _ = strings.Cut(source, "?")
	}
	switch strings.ToLower(path.Ext(filename)) {
	case ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".heic", ".bmp", ".tiff":
		return "MediaImage"
	case ".mp4", ".mov", ".webm":
		return "Video"
	default:
		return "GenericFile"
	}
}

// fileUpdate changes files and what refers to them, all or none.
func fileUpdate(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	given := asInputs(a["files"])
	for i, in := range given {
		x.checkFileUpdate(in, i, &errs)
	}
	if len(errs) > 0 {
		return x.payload(errs, record{"files": nil})
	}
	out := make([]any, len(given))
	for i, in := range given {
		m := x.mediaByGID(in["id"])
		out[i] = m
		if in.has("alt") {
			m.alt = in.text("alt")
		}
		if in.given("filename") {
			m.filename = in.text("filename")
		}
		for _, name := range []string{"previewImageSource", "originalSource"} {
			if in.given(name) {
				m.source = in.text(name)
			}
		}
		for _, id := range texts(in["referencesToAdd"]) {
			x.refer(id, func(p *product) {
				if !slices.Contains(p.media, m) {
					p.media = append(p.media, m)
				}
			})
		}
		for _, id := range texts(in["referencesToRemove"]) {
			x.refer(id, func(p *product) {
				p.media = slices.DeleteFunc(p.media, func(e *media) bool { return e == m })
				p.dropLostMedia()
			})
		}
		m.updatedAt = x.now
	}
	return x.payload(nil, record{"files": out})
}

func (x *execution) checkFileUpdate(in input, i int, errs *userErrors) {
	m := x.mediaByGID(in["id"])
	switch {
	case m == nil:
		errs.add("FILE_DOES_NOT_EXIST", fmt.Sprintf("File id %s does not exist.", quoted([]string{in.text("id")})), "files", i, "id")
		return
	case x.state(m) != "READY":
		errs.add("NON_READY_STATE", "Non-ready files cannot be updated.", "files", i, "id")
		return
	case in.given("originalSource") && in.given("previewImageSource"):
		errs.add("INVALID", "Specify either originalSource or previewImageSource, not both.", "files", i)
	case len(in.text("alt")) > maxAlt:
		errs.add("ALT_VALUE_LIMIT_EXCEEDED", "The alt value exceeds the maximum limit of 512 characters.", "files", i, "alt")
	case in.given("filename") && !strings.EqualFold(path.Ext(in.text("filename")), path.Ext(m.filename)):
		errs.add("INVALID_FILENAME_EXTENSION", "The filename extension must match the original filename.", "files", i, "filename")
	}
	for _, field := range []string{"referencesToAdd", "referencesToRemove"} {
		for _, id := range texts(in[field]) {
			if kind, _, _ := parseGID(id); kind != "Product" {
				errs.add("UNSUPPORTED_FILE_REFERENCE", "The file reference is not supported.", "files", i, field)
			} else if x.products[idOf("Product", id)] == nil {
				errs.add("REFERENCE_TARGET_DOES_NOT_EXIST", "The reference target does not exist", "files", i, field)
			}
		}
	}
}

// refer changes the media of a product.
func (x *execution) refer(id string, change func(p *product)) {
	p := x.products[idOf("Product", id)].clone()
	change(p)
	p.updatedAt = x.now
	x.put(p)
}

func fileDelete(x *execution, _ any, a arguments) (any, error) {
	var errs userErrors
	ids := texts(a["fileIds"])
	var missing []string
	for _, id := range ids {
		if x.mediaByGID(id) == nil {
			missing = append(missing, lastPart(id))
		}
	}
	if len(missing) > 0 {
		verb := "does"
		noun := "File id "
		if len(missing) > 1 {
			verb, noun = "do", "File ids "
		}
		errs.add("FILE_DOES_NOT_EXIST", noun+strings.Join(missing, ",")+" "+verb+" not exist.", "fileIds")
		return x.payload(errs, record{"deletedFileIds": nil})
	}
	for _, id := range ids {
		m := x.mediaByGID(id)
		for _, p := range x.products {
			if slices.Contains(p.media, m) {
				x.refer(gid("Product", p.id), func(p *product) {
					p.media = slices.DeleteFunc(p.media, func(e *media) bool { return e == m })
					p.dropLostMedia()
				})
			}
		}
		delete(x.media, m.id)
		x.mediaOrder = slices.DeleteFunc(x.mediaOrder, func(e int64) bool { return e == m.id })
	}
	return x.payload(nil, record{"deletedFileIds": nodes(ids)})
}
