package change

// Partition returns the partition of a product among n, as every Kafka client with the default partitioner places
// its key: positive murmur2 of the key bytes, modulo n. Order per product and the assignment of parked products to
// workers both rest on it, so there is this one definition.
func Partition(product ProductID, n int32) int32 {
	return int32(murmur2([]byte(product))&0x7fffffff) % n
}

// murmur2 is the 32-bit MurmurHash2 with Kafka's seed (org.apache.kafka.common.utils.Utils.murmur2).
func murmur2(b []byte) uint32 {
	const (
		seed = uint32(0x9747b28c)
		m    = uint32(0x5bd1e995)
		r    = 24
	)
	h := seed ^ uint32(len(b))
	for len(b) >= 4 {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h = h*m ^ k
		b = b[4:]
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}
