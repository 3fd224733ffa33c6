package shopifysim

import (
	"fmt"
	"net/url"
	"path"
	"strings"
)

func mediaTypes() map[string]fields {
	out := map[string]fields{} // images are rendered as records
	for _, kind := range []string{"MediaImage", "Video", "ExternalVideo", "Model3d", "GenericFile"} {
		out[kind] = mediaFields(kind)
	}
	return out
}

func mediaFields(kind string) fields {
	return fields{
		"id":               get(func(m *media) any { return gid(kind, m.id) }),
		"alt":              get(func(m *media) any { return m.alt }),
		"mediaContentType": get(func(m *media) any { return m.contentType() }),
		"status":           with(func(x *execution, m *media, _ arguments) (any, error) { return x.state(m), nil }),
		"fileStatus":       with(func(x *execution, m *media, _ arguments) (any, error) { return x.state(m), nil }),
		"createdAt":        get(func(m *media) any { return m.createdAt }),
		"updatedAt":        get(func(m *media) any { return m.updatedAt }),
		"mediaWarnings":    get(func(*media) any { return []any{} }),
		"mediaErrors":      with(func(x *execution, m *media, _ arguments) (any, error) { return x.mediaErrors(m), nil }),
		"fileErrors":       with(func(x *execution, m *media, _ arguments) (any, error) { return x.mediaErrors(m), nil }),
		"mimeType":         with(func(x *execution, m *media, _ arguments) (any, error) { return x.mime(m), nil }),
		"originalSource": get(func(m *media) any {
			return record{"url": m.source, "fileSize": nil}
		}),
		"image": with(func(x *execution, m *media, _ arguments) (any, error) { return x.image(m), nil }),
		"preview": with(func(x *execution, m *media, _ arguments) (any, error) {
			return record{"image": x.image(m), "status": x.state(m)}, nil
		}),
		"url": with(func(x *execution, m *media, _ arguments) (any, error) { return x.cdn(m), nil }),
	}
}

func (m *media) contentType() string {
	switch m.kind {
	case "Video":
		return "VIDEO"
	case "ExternalVideo":
		return "EXTERNAL_VIDEO"
	case "Model3d":
		return "MODEL_3D"
	default:
		return "IMAGE"
	}
}

// state is a file's status now: uploaded, then processed, then what became of it.
func (s *store) state(m *media) string {
	switch age := s.now.Sub(m.createdAt); {
	case age < s.mediaDelay/2:
		return "UPLOADED"
	case age < s.mediaDelay:
		return "PROCESSING"
	default:
		return m.status
	}
}

func (s *store) mediaErrors(m *media) []any {
	if s.state(m) != "FAILED" {
		return []any{}
	}
	return []any{record{"code": "IMAGE_DOWNLOAD_FAILURE", "message": "Image could not be downloaded", "details": nil}}
}

func (s *store) mime(m *media) any {
	if s.state(m) != "READY" {
		return nil
	}
	switch strings.ToLower(path.Ext(m.filename)) {
	case ".png":
		return "image/png"
	case ".gif":
		return "image/gif"
	case ".webp":
		return "image/webp"
	case ".pdf":
		return "application/pdf"
	case ".mp4":
		return "video/mp4"
	default:
		return "image/jpeg"
	}
}

// image renders the picture of a media image; nil until it is ready.
func (x *execution) image(m *media) any {
	if m.kind != "MediaImage" || x.state(m) != "READY" {
		return nil
	}
	at := x.cdn(m)
	return record{
		"id": gid("ImageSource", m.imageID), "url": at, "src": at, "originalSrc": at, "transformedSrc": at,
		"altText": m.alt, "width": 1000, "height": 1000, "thumbhash": nil,
	}
}

// cdn is where a file is served once it is ready.
func (s *store) cdn(m *media) any {
	if s.state(m) != "READY" {
		return nil
	}
	return fmt.Sprintf("https://cdn.shopify.com/s/files/1/%d/files/%s?v=%d", s.shopID(), url.PathEscape(m.filename), m.updatedAt.Unix())
}

// newMedia makes a file, which keep adds to the shop. A source whose host ends in .invalid cannot be downloaded (RFC 2606) and FAILED;
// all others are READY after Config.MediaDelay.
func (s *store) newMedia(kind, source, alt, filename string) *media {
	m := &media{id: s.ids.take(), imageID: s.ids.take(), kind: kind, alt: alt, source: source, status: "READY", createdAt: s.now, updatedAt: s.now}
	m.filename = filename
	u, err := url.Parse(source)
	if err == nil && m.filename == "" {
		m.filename = path.Base(u.Path)
	}
	if err == nil && strings.HasSuffix(u.Hostname(), ".invalid") {
		m.status = "FAILED"
	}
	return m
}

// keep makes files the shop's own; those that it has already stay where they are.
func (s *store) keep(files ...*media) {
	for _, m := range files {
		if s.media[m.id] == nil {
			s.media[m.id] = m
			s.mediaOrder = append(s.mediaOrder, m.id)
		}
	}
}

// downloadable says whether Shopify accepts a text as the address of a file.
func downloadable(source string) bool {
	u, err := url.Parse(source)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && len(source) <= 2048
}

// kindOf maps content types of inputs to media types.
func kindOf(contentType string) string {
	switch contentType {
	case "VIDEO":
		return "Video"
	case "EXTERNAL_VIDEO":
		return "ExternalVideo"
	case "MODEL_3D":
		return "Model3d"
	case "FILE":
		return "GenericFile"
	default:
		return "MediaImage"
	}
}

// mediaByGID finds a file by its global id, whatever media type the id names.
func (s *store) mediaByGID(v any) *media {
	t, _ := v.(string)
	kind, id, ok := parseGID(t)
	m := s.media[id]
	if !ok || m == nil || m.kind != kind {
		return nil
	}
	return m
}

func mediaQueries() fields {
	return fields{
		"files": func(x *execution, _ any, a arguments) (any, error) {
			list := make([]any, len(x.mediaOrder))
			for i, id := range x.mediaOrder {
				list[i] = x.media[id]
			}
			return page(a, list)
		},
	}
}
