#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

// The C library's functions under names that no tensor method hides.
func _log(_ value: Double) -> Double { log(value) }
func _cos(_ value: Double) -> Double { cos(value) }
package func exponential(_ value: Double) -> Double { exp(value) }
