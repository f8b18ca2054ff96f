// swift-tools-version: 6.1
import PackageDescription

// LibTorch is not named here: the C++ shim over it (Sources/TorchShim) is built by `make` into
// libgraft_torch.so, which CTorch loads on first use. See docs/architecture.md.

let settings: [SwiftSetting] = [.swiftLanguageMode(.v6), .enableUpcomingFeature("ExistentialAny")]

// The program carries Swift's runtime, so that it starts fast and runs where no toolchain is. SwiftPM's own switch for
// that cannot build tests in the same folder; these flags go to the program's link step alone.
let staticRuntime: [LinkerSetting] = [
    .unsafeFlags(
        [
            "-static-stdlib", "-use-ld=lld", "-lFoundation", "-lCoreFoundation", "-lFoundationInternationalization",
            "-lFoundationEssentials", "-l_FoundationCollections", "-l_FoundationCShims", "-l_FoundationICU",
            "-lswiftSynchronization",
            // The archives come first, so that the program needs neither library where it runs.
            "-l:libpcre2-8.a", "-l:libz.a", "-Xlinker", "--as-needed",
        ],
        .when(platforms: [.linux]))
]

let package = Package(
    name: "Graft",
    platforms: [.macOS(.v15)],
    products: [
        .library(name: "Graft", targets: ["Graft"]),
        .executable(name: "graft", targets: ["GraftCLI"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    ],
    targets: [
        .target(name: "CTorch", linkerSettings: [.linkedLibrary("dl", .when(platforms: [.linux]))]),
        .target(name: "CBlocks"),
        .systemLibrary(
            name: "CPCRE2", path: "Sources/CPCRE2", providers: [.apt(["libpcre2-dev"])]),
        .systemLibrary(name: "CZlib", path: "Sources/CZlib", providers: [.apt(["zlib1g-dev"])]),
        .target(
            name: "Torch",
            dependencies: ["CTorch", .product(name: "Crypto", package: "swift-crypto")],
            swiftSettings: settings),
        .target(name: "Formats", dependencies: ["Torch", "CBlocks", "CZlib"], swiftSettings: settings),
        .target(name: "Tokenizers", dependencies: ["Formats", "CPCRE2"], swiftSettings: settings),
        .target(
            name: "Backbones", dependencies: ["Torch", "Formats", "Tokenizers", "CBlocks"], swiftSettings: settings),
        .target(name: "PEFT", dependencies: ["Torch", "Formats", "Backbones"], swiftSettings: settings),
        .target(
            name: "Training",
            dependencies: [
                "Torch", "Formats", "Tokenizers", "Backbones", "PEFT",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Yams", package: "Yams"),
            ],
            swiftSettings: settings),
        .target(
            name: "Graft",
            dependencies: ["Torch", "Formats", "Tokenizers", "Backbones", "PEFT", "Training"],
            swiftSettings: settings),
        .executableTarget(
            name: "CustomMethod", dependencies: ["Graft"], path: "Examples/CustomMethod", swiftSettings: settings),
        .executableTarget(
            name: "Demo", dependencies: ["Graft"], path: "Examples/Demo", swiftSettings: settings),
        .executableTarget(
            name: "Quickstart", dependencies: ["Graft"], path: "Examples/Quickstart", swiftSettings: settings),
        .executableTarget(
            name: "TokenizerBenchmark", dependencies: ["Tokenizers"], path: "Benchmarks/Tokenizer",
            swiftSettings: settings),
        .executableTarget(
            name: "GraftCLI",
            dependencies: ["Graft", .product(name: "ArgumentParser", package: "swift-argument-parser")],
            swiftSettings: settings, linkerSettings: staticRuntime),

        .target(name: "TestSupport", dependencies: ["Formats"], path: "Tests/TestSupport", swiftSettings: settings),
        .executableTarget(
            name: "Fuzzer",
            dependencies: [
                "Torch", "Formats", "Tokenizers", "Backbones", "PEFT", "Training", "TestSupport",
                .product(name: "Crypto", package: "swift-crypto"),
            ],
            path: "Tests/Fuzzer", swiftSettings: settings),
        .testTarget(name: "FuzzTests", dependencies: ["Formats", "TestSupport", "Fuzzer"], swiftSettings: settings),
        .testTarget(name: "TorchTests", dependencies: ["Torch", "TestSupport"], swiftSettings: settings),
        .testTarget(name: "FormatsTests", dependencies: ["Formats", "TestSupport"], swiftSettings: settings),
        .testTarget(name: "TokenizersTests", dependencies: ["Tokenizers", "TestSupport"], swiftSettings: settings),
        .testTarget(name: "BackbonesTests", dependencies: ["Backbones", "TestSupport"], swiftSettings: settings),
        .testTarget(name: "PEFTTests", dependencies: ["PEFT", "TestSupport"], swiftSettings: settings),
        .testTarget(name: "TrainingTests", dependencies: ["Training", "TestSupport"], swiftSettings: settings),
        .executableTarget(
            name: "AttachFirst", dependencies: ["Graft"], path: "Tests/AttachFirst", swiftSettings: settings),
        .testTarget(name: "CLITests", dependencies: ["Graft", "TestSupport", "AttachFirst"], swiftSettings: settings),
    ]
)
