plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "edge.demo"
    compileSdk = libs.versions.compileSdk.get().toInt()
    defaultConfig {
        applicationId = "edge.demo"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = 1
        versionName = "0.1.0"
        ndk.abiFilters += listOf("arm64-v8a", "x86_64")
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    sourceSets {
        getByName("main") {
            kotlin.srcDir("src/main/kotlin")
            // The model and its publisher's key; `make android` makes them.
            assets.srcDir("../build/assets")
        }
        getByName("test").kotlin.srcDir("src/test/kotlin")
    }
    testOptions.unitTests {
        isIncludeAndroidResources = true
        all {
            it.useJUnitPlatform()
            it.systemProperty("edge.screens", file("../build/screens").path)
        }
    }
}

dependencies {
    implementation(project(":edge-android"))
    implementation(libs.onnxruntime.android)
    testImplementation(libs.junit)
    testImplementation(libs.junit.vintage)
    testImplementation(libs.robolectric)
}
