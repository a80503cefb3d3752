// For Android Studio. What is built and tested is Maven's pom.xml; tests hold the two to the same versions and modules.

pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "android-demo"

include(":edge-client", ":edge-android", ":app")
