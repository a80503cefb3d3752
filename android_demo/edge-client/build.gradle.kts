import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.kotlin.jvm)
}

java {
    sourceCompatibility = JavaVersion.VERSION_1_8
    targetCompatibility = JavaVersion.VERSION_1_8
}

kotlin {
    explicitApi()
    compilerOptions {
        jvmTarget.set(JvmTarget.JVM_1_8)
        allWarningsAsErrors.set(true)
    }
}

sourceSets {
    main {
        kotlin.srcDir("src/main/kotlin")
        java.srcDir("src/generated/java")
    }
    test {
        kotlin.srcDir("src/test/kotlin")
    }
}

dependencies {
    api(libs.kotlin.stdlib)
    api(libs.kotlinx.coroutines.core)
    implementation(libs.bcprov)
    implementation(libs.flatbuffers)
    // The same classes are in onnxruntime-android, which an app brings.
    compileOnly(libs.onnxruntime)
    testImplementation(libs.onnxruntime)
    testImplementation(libs.junit)
}

tasks.test {
    useJUnitPlatform()
    systemProperty("edge.repository", "$projectDir/../..")
}
