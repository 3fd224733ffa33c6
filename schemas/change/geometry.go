package change

import (
	"encoding/binary"
	"math"
	"strconv"
)

// appendGeometry gives the connector's structures: a line its coefficients, a point its coordinates, and all but the
// line the coordinates as WKB (little-endian), which is exact: Postgres writes a double by digits that lead back to it.
// Text that is none of these is sent as it is.
func appendGeometry(dst []byte, oid uint32, text []byte) []byte {
	var room [32]float64
	g, ok := parseGeometry(text, room[:0])
	if !ok {
		return appendString(dst, text)
	}
	n := g.points
	switch {
	case oid == oidPoint && n == 1 && g.rest == 0:
		return g.appendPoint(dst)
	case oid == oidCircle && n == 1 && g.rest == 1:
		dst = g.appendPoint(append(dst, `{"center":`...))
		dst = append(dst, `,"radius":`...)
		return append(appendCoordinate(dst, g.scalars[0].text), '}')
	case oid == oidLine && n == 0 && g.rest == 3:
		for i, name := range []string{`{"a":`, `,"b":`, `,"c":`} {
			dst = appendCoordinate(append(dst, name...), g.scalars[i].text)
		}
		return append(dst, '}')
	case n == 0 || g.rest > 0 || (oid == oidLseg || oid == oidBox) && n != 2:
	case oid == oidLseg:
		return g.appendShape(dst, wkbLine, "lseg")
	case oid == oidBox:
		return g.appendShape(dst, wkbPolygon, "box")
	case oid == oidPolygon:
		return g.appendShape(dst, wkbPolygon, "polygon")
	case oid == oidPath && text[0] == '[':
		return g.appendShape(dst, wkbLine, `path","closed":"false`)
	case oid == oidPath:
		return g.appendShape(dst, wkbLine, `path","closed":"true`)
	}
	return appendString(dst, text)
}

// The shapes of WKB (OGC 06-103r4).
const (
	wkbPoint   = 1
	wkbLine    = 2
	wkbPolygon = 3
)

// geometry is what stands in a geometric type's text: pairs in parentheses, and numbers beside them.
type geometry struct {
	// all holds the coordinates of the points, of which there are so many.
	all     []float64
	points  int
	scalars [3]scalar
	rest    int
	first   [2][]byte // the first point as it is written
}

type scalar struct {
	text  []byte
	value float64
}

// parseGeometry reads "(1,2)", "[(0,0),(1,1)]", "((0,0),(1,1))", "(1,1),(0,0)", "<(0,0),2.5>" and "{1,2,3}". All is room
// for the coordinates.
func parseGeometry(text []byte, all []float64) (g geometry, ok bool) {
	g.all = all
	var pair scalar // the last number, when it may be the first of a pair
	inside, have := false, false
	for i := 0; i < len(text); {
		switch c := text[i]; c {
		case '(':
			inside, have = true, false
			i++
		case ')':
			inside = false
			i++
		case '[', ']', '{', '}', '<', '>', ',':
			i++
		default:
			at := i
			for i < len(text) && text[i] != ',' && text[i] != ')' && text[i] != '>' && text[i] != '}' && text[i] != ']' {
				i++
			}
			s := scalar{text: text[at:i]}
			var err error
			if s.value, err = strconv.ParseFloat(string(s.text), 64); err != nil {
				return g, false
			}
			switch {
			case inside && have:
				if g.points == 0 {
					g.first = [2][]byte{pair.text, s.text}
				}
				g.all = append(g.all, pair.value, s.value)
				g.points++
				have = false
			case inside:
				pair, have = s, true
			case g.rest == len(g.scalars):
				return g, false
			default:
				g.scalars[g.rest] = s
				g.rest++
			}
		}
	}
	return g, !inside && !have
}

func (g *geometry) appendPoint(dst []byte) []byte {
	dst = appendCoordinate(append(dst, `{"x":`...), g.first[0])
	dst = appendCoordinate(append(dst, `,"y":`...), g.first[1])
	dst = append(dst, `,"wkb":`...)
	var room [21]byte
	wkb := appendDouble(appendDouble(binary.LittleEndian.AppendUint32(append(room[:0], 1), wkbPoint), g.all[0]), g.all[1])
	return append(appendBase64(dst, wkb), `,"srid":null}`...)
}

// appendShape appends what has more than one point.
func (g *geometry) appendShape(dst []byte, kind uint32, name string) []byte {
	var room [512]byte
	wkb := binary.LittleEndian.AppendUint32(append(room[:0], 1), kind)
	points := g.all
	if kind == wkbPolygon {
		wkb = binary.LittleEndian.AppendUint32(wkb, 1) // one ring
		if name == "box" {                             // of which Postgres writes two corners
			x1, y1, x2, y2 := points[0], points[1], points[2], points[3]
			points = append(points[:0], x1, y1, x1, y2, x2, y2, x2, y1)
		}
		points = append(points, points[0], points[1])
	}
	wkb = binary.LittleEndian.AppendUint32(wkb, uint32(len(points)/2))
	for _, v := range points {
		wkb = appendDouble(wkb, v)
	}
	dst = appendBase64(append(dst, `{"wkb":`...), wkb)
	dst = append(dst, `,"srid":null,"extensions":{"type":"`...)
	return append(append(dst, name...), `"}}`...)
}

// appendCoordinate is a float8; called by way of appendScalar, it would have the values of all types on the heap.
func appendCoordinate(dst, text []byte) []byte {
	if isNumber(text) {
		return append(dst, text...)
	}
	return appendString(dst, text)
}

// appendDouble writes NaN as Java does, which has one bit less set than Go's.
func appendDouble(dst []byte, v float64) []byte {
	bits := math.Float64bits(v)
	if v != v {
		bits = 0x7ff8 << 48
	}
	return binary.LittleEndian.AppendUint64(dst, bits)
}
